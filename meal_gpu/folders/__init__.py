"""From a folder of images and back to one: a config to begin with, masks of other images, the labelled data set.

`proposal` makes a config of what `data.survey` found, and `template` writes it with its reasons; `begin` is
``meal-gpu init``. `network` and `predict` are ``meal-gpu predict``; `export` is ``meal-gpu export``. Stands on
`launch`, by which a run is read and its labels replayed, and on nothing beside it.
"""
