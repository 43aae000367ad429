"""Embeddings and softmaxes whose rare words have fewer dimensions, with gates on the dimensions."""

from argprune.models.adaptive.cluster import Cluster as Cluster
from argprune.models.adaptive.cluster import find_clusters as find_clusters
from argprune.models.adaptive.embedding import AdaptiveEmbedding as AdaptiveEmbedding
from argprune.models.adaptive.language_model import AdaptiveConfig as AdaptiveConfig
from argprune.models.adaptive.language_model import AdaptiveLanguageModel as AdaptiveLanguageModel
from argprune.models.adaptive.softmax import AdaptiveSoftmax as AdaptiveSoftmax
