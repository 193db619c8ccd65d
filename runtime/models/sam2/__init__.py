"""SAM 2 and 2.1: promptable segmentation of videos and images."""
