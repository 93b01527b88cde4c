"""Sleep for Hugging Face models.

    model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
    insert_fast_weights(model, [9, 19, 29])
    add_sleep(model, SleepConfig(window_size=1024, num_sleep_passes=2))

Importing this makes the types Jet-Nemotron, Ouro, `reverie_sleep` (what such a model saves) and `reverie_hybrid` (our
own) known to transformers' Auto classes.
"""

from reverie.hf.adapt import freeze_pretrained, unfreeze
from reverie.hf.add import add_sleep, insert_fast_weights
from reverie.hf.blocks import InsertConfig
from reverie.hf.cache import SleepCache, cache_of
from reverie.hf.int8 import quantize_awake
from reverie.hf.load import load
from reverie.hf.models.hybrid import ReverieHybridConfig, ReverieHybridForCausalLM, load_hybrid, save_hybrid
from reverie.hf.models.jet_nemotron import JetNemotronConfig, JetNemotronForCausalLM
from reverie.hf.models.ouro import OuroConfig, OuroForCausalLM
from reverie.model import model_remembers
from reverie.sleep import SleepConfig

__all__ = [
    "InsertConfig",
    "JetNemotronConfig",
    "JetNemotronForCausalLM",
    "OuroConfig",
    "OuroForCausalLM",
    "ReverieHybridConfig",
    "ReverieHybridForCausalLM",
    "SleepCache",
    "SleepConfig",
    "add_sleep",
    "cache_of",
    "freeze_pretrained",
    "insert_fast_weights",
    "load",
    "load_hybrid",
    "model_remembers",
    "quantize_awake",
    "save_hybrid",
    "unfreeze",
]
