"""Official checkpoint files and Hugging Face folders."""
