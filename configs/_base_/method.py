"""What rows after other papers share: AdamW, a cosine to 0 after 40 epochs of warm-up, 4,096 images a step."""

global_batch_size = 4096
optimizer = dict(type="adamw", betas=(0.9, 0.95), weight_decay=0.05)
schedule = dict(type="cosine", warmup_epochs=40, min_lr=0.0)
