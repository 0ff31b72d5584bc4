// actors/connector/rows.hpp -- from what is known and wished to what the rows shall say. Pure.
#pragma once

#include "actors/connector/facts.hpp"

namespace warren::connector {

/// Nothing that administrators decide differs.
bool same_spec(const v1::ConnectorRow& a, const v1::ConnectorRow& b);

/// One save of everything that is wished and not stored; none when the rows say it all.
void reconcile(transition& t, moment now);

}  // namespace warren::connector
