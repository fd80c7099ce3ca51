"""What several rooms need and none of them owns: files, tables, statistics."""
