"""Is it sleep? Models that differ from a sleeping one in a single thing each, trained and tested on the same data.

    python benchmarks/controls --tasks depo/nano,rule110/nano --seeds 0,1,2,3,4 --out results/control

trains and tests what is missing, one cell (task, control, seed) at a time, each in a folder of its own under --runs
with its own card; broken off, it goes on where it was. Then it leaves a card and a figure for each task in --out. All
controls of a seed have the same examples in the same order, and those with the same parameters begin with the same.

`models.py` has the controls that are other models, `cells.py` all of them and how one is run, `costs.py` counts
operations, `card.py` sums up.
"""
