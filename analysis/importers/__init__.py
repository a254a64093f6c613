"""Result files of other load generators, one module a tool, read into one form (``foreign``)."""
