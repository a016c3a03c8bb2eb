"""Files of the PyTorch world (safetensors, diffusers and transformers folders, LoRA files) and parameter trees."""
