"""ImageReward's published architecture in PyTorch, under its published names, with random weights."""

import torch
from PIL import Image
from torch import nn
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.heads = width // 64
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, t, d = x.shape
        query, key, value = self.qkv(x).reshape(n, t, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * 64**-0.5).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(n, t, d))


class _Block(nn.Module):
    def __init__(self, width, intermediate):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, intermediate), "fc2": nn.Linear(intermediate, width)})

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class _VisionTransformer(nn.Module):
    def __init__(self, width, intermediate, layers, patch, size):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(_Block(width, intermediate) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels):
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ImageRewardReference(nn.Module):
    """Of any width that 64 divides; `state_dict()` is what ImageReward.pt holds."""

    def __init__(self, vision, text, vocabulary, vision_layers, layers, size=224, patch=16):
        super().__init__()
        config = BlipTextConfig(
            vocab_size=vocabulary,
            hidden_size=text,
            encoder_hidden_size=vision,
            intermediate_size=4 * text,
            num_hidden_layers=layers,
            num_attention_heads=text // 64,
            bos_token_id=0,
            sep_token_id=0,
            layer_norm_eps=1e-12,
        )
        self.blip = nn.ModuleDict(
            {
                "visual_encoder": _VisionTransformer(vision, 4 * vision, vision_layers, patch, size),
                "text_encoder": BlipTextModel(config, add_pooling_layer=False),
                "vision_proj": nn.Linear(vision, 256),
                "text_proj": nn.Linear(text, 256),
            }
        )
        widths = (text, 1024, 128, 64, 16, 1)
        linear = [nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False)]
        drop = nn.Dropout(0.2)
        self.mlp = nn.ModuleDict(
            {"layers": nn.Sequential(linear[0], drop, linear[1], drop, linear[2], drop, linear[3], linear[4])}
        )
        self.size = size
        # As they are initialised, rewards hardly depend on image and prompt.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
        self.eval()

    def preprocess(self, image):
        """torchvision's Resize, CenterCrop and Normalize of an array, by PIL."""
        picture = Image.fromarray(image)
        short = min(picture.size)
        width, height = (int(self.size * length / short) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (int(round((length - self.size) / 2.0)) for length in (width, height))
        picture = picture.crop((left, top, left + self.size, top + self.size))
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(self.size, self.size, 3)
        return ((pixels / 255 - torch.tensor(MEAN)) / torch.tensor(SPREAD)).permute(2, 0, 1)

    def forward(self, images, token_ids):
        """Rewards of images, uint8 arrays, each for its own row of token ids."""
        states = self.blip["visual_encoder"](torch.stack([self.preprocess(image) for image in images]))
        ids = torch.tensor(token_ids, dtype=torch.long)
        read = self.blip["text_encoder"](
            input_ids=ids,
            attention_mask=(ids != 0).long(),
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long),
            is_decoder=False,
        ).last_hidden_state[:, 0]
        return (self.mlp["layers"](read)[:, 0] - 0.16717362830052426) / 1.0333394966054072
