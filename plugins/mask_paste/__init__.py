"""Instance masks pasted into the photo, dense, cut out or run-length encoded; works on the CPU only."""
