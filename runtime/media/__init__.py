"""Pictures, videos, cameras and streams as RGB frames."""
