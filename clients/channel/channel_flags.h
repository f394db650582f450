// The flags of a ChannelOptions, the same for every client.
#pragma once

#include "CLI/CLI.hpp"
#include "clients/channel/channel.h"

namespace longhaul::channel {

// All but the address, whose flag each program names.
void AddChannelFlags(CLI::App& app, ChannelOptions* options);

}  // namespace longhaul::channel
