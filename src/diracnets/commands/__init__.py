"""The commands of the command line, one file each: what it is asked, and what it prints."""
