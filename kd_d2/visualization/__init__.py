"""Pictures of what was learned: curves, detections side by side, feature maps."""
