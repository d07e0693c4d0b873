"""What each stage is compared with: research code, eager PyTorch, other libraries.

Stands on `subjects`.
"""
