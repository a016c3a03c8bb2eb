from small_pipeline import diffusers_folder, pipeline, tokenizer_folder

__all__ = ["diffusers_folder", "pipeline", "tokenizer_folder"]
