"""What the native forms of all ops share, and the build of the CPU library."""
