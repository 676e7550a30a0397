"""Where the bytes of files are kept, behind one seam."""
