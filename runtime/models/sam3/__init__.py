"""SAM 3: concepts in images and videos."""
