"""recycledb."""
