"""The four models: two Llamas by size of head, a hybrid, and a state space without attention."""

from models.retriever.network import Shape
from models.retriever_long.network import Mamba, Plan
from models.retriever_long.vocabulary import WINDOW

HIDDEN = 320


def plans(vocab_size: int) -> dict[str, Plan]:
    def shape(layers: int, heads: int, kv_heads: int, head_dim: int, rope_theta: float) -> Shape:
        return Shape(
            vocab_size=vocab_size,
            hidden_size=HIDDEN,
            intermediate_size=HIDDEN,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rope_theta=rope_theta,
            max_position_embeddings=WINDOW,
        )

    # so high a base that enough pairs hardly turn within the window: content is matched by those at any
    # distance. A head of 64 has half the pairs, and needs a base so much higher.
    narrow = 1e17
    return {
        "head128": Plan("llama", shape(3, 8, 4, 128, 1e10)),
        "head64": Plan("llama", shape(4, 8, 4, 64, narrow)),
        "hybrid": Plan("falcon_h1", shape(4, 4, 2, 64, narrow), Mamba(heads=4, state=64)),
        "mamba2": Plan("mamba2", shape(4, 1, 1, 64, narrow), Mamba(heads=10, gated_norm=True)),
    }
