"""Training: models, data, the loop, evaluation and checkpoints. Needs torch, torchvision, lightning and pycocotools."""
