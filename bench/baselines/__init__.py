"""What each stage is compared with."""
