"""The parts of the training loop; the trainers themselves are in meshgpt_pytorch.trainer."""
