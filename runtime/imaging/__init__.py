"""Images in, masks out: resizing, upsampling, boxes, morphology."""
