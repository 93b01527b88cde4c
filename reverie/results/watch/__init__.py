"""`reverie watch`: what sleep does along one text."""
