"""One method of each sort for recycledb: teacher steps, a student measure, a transform."""
