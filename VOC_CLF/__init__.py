"""VOC2007 classification on a frozen encoder."""
