"""Task vectors, the differences between fine-tuned and base parameters: scaled by depth, composed, cut in rank."""

from normjax.task_vectors._compose import chunk_groups as chunk_groups
from normjax.task_vectors._compose import compose as compose
from normjax.task_vectors._compose import importance_chunks as importance_chunks
from normjax.task_vectors._compose import random_groups as random_groups
from normjax.task_vectors._lines import lines as lines
from normjax.task_vectors._lines import lines_alpha as lines_alpha
from normjax.task_vectors._lines import task_vector as task_vector
from normjax.task_vectors._ranks import LowRank as LowRank
from normjax.task_vectors._ranks import RankPlan as RankPlan
from normjax.task_vectors._ranks import low_rank as low_rank
from normjax.task_vectors._ranks import rank_plan as rank_plan
