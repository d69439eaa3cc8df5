"""Trackers: show a run in Weights & Biases, TensorBoard, MLflow, or Trackio."""
