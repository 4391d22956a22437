"""Final detections from box-head outputs (RegionDetections)."""
