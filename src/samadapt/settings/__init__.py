"""What a user can set, one dataclass for each thing. No torch: the command line derives its options from these.

Which numbers they lead to stands where they are used; the names that a name is chosen from stand in `names`.
"""

import dataclasses

from samadapt.options import Declarations, declared, without
from samadapt.settings.studies import (
    CONFIGURATIONS,
    TRAINERS,
    CellOptions,
    NnUNetConfig,
    RayOptions,
    SimclrConfig,
    StudySettings,
    SuggestStudySettings,
)
from samadapt.settings.training import (
    FinishOptions,
    LearnerSettings,
    OpenOptions,
    SplitOptions,
    TrainConfig,
    UnlabelledOptions,
)
from samadapt.settings.using import ExportOptions, PredictOptions, SuggestOptions

#: The tables of a study's file and the settings in each; what stands above the tables has no name.
TABLES: dict[str, Declarations] = {
    "": {
        **declared(StudySettings),
        "select": declared(SplitOptions)["select"],
        "fold": dataclasses.replace(declared(SplitOptions)["fold"], kind=int),  # one of a study's settings
    },
    "encoder": declared(LearnerSettings),
    "train": without(declared(TrainConfig), "seed", "devices"),
    "simclr": declared(SimclrConfig),
    "nnunet": declared(NnUNetConfig),
}
