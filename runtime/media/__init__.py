"""Images, videos, cameras and network streams as RGB frames."""
