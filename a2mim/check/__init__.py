"""`a2mim check-model`: proofs about one network, and a survey of all that timm can build."""
