"""The configurations that ship with meal-gpu; ``meal-gpu run camvid`` finds them by name."""
