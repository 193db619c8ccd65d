"""Options of sessions and automatic masks: types of their values."""

import numpy as np
import pytest

import runtime


@pytest.mark.parametrize(
    "options, name, value, wanted",
    [
        (runtime.TextOptions, "memory", "no", "True or False"),
        (runtime.TextOptions, "conditional_memory", "off", "True or False"),
        (runtime.ConceptOptions, "temporal_disambiguation", None, "True or False"),
        (runtime.TrackingOptions, "non_overlap_masks", 2, "True or False"),
        (runtime.TrackingOptions, "add_all_frames_to_correct_as_cond", [True], "True or False"),
        (runtime.AutomaticMaskOptions, "use_m2m", 1.5, "True or False"),
        (runtime.AutomaticMaskOptions, "pred_iou_thresh", "0.5", "a number"),
        (runtime.AutomaticMaskOptions, "crop_overlap_ratio", float("nan"), "a number"),
    ],
)
def test_options_of_another_type(options, name, value, wanted):
    with pytest.raises(runtime.UserError, match=f"{name} must be {wanted}, not"):
        options(**{name: value})


def test_options_take_numbers_and_flags_of_numpy():
    assert runtime.ConceptOptions(temporal_disambiguation=np.bool_(False)).temporal_disambiguation == 0
    assert runtime.AutomaticMaskOptions(pred_iou_thresh=np.float32(0.5), use_m2m=1, crop_nms_thresh=1).use_m2m == 1
    assert runtime.TextOptions(conditional_memory=None).conditional_memory is None
