"""Following objects through a video: state, memory, sessions."""
