// services/bus/subjects.hpp -- the subjects live in actors/core, where partitions parse them too.
#pragma once

#include "actors/core/subjects.hpp"
