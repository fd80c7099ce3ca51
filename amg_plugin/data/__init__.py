"""Data: the drawn data set, data set classes, transforms, the data manager and its checks."""
