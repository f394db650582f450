#include "clients/channel/channel_flags.h"

namespace longhaul::channel {

void AddChannelFlags(CLI::App& app, ChannelOptions* options) {
  constexpr char kGroup[] = "Security";
  app.add_flag("--tls", options->tls, "TLS, with the system's authorities")->group(kGroup);
  app.add_option("--tls-ca", options->ca_file,
                 "PEM: who signs the scheduler's certificate (also LONGHAUL_TLS_CA); means TLS")
      ->type_name("FILE")
      ->group(kGroup);
  app.add_option("--tls-cert", options->certificate_file, "PEM: our certificate (also LONGHAUL_TLS_CERT)")
      ->type_name("FILE")
      ->group(kGroup);
  app.add_option("--tls-key", options->key_file, "PEM: the key of --tls-cert (also LONGHAUL_TLS_KEY)")
      ->type_name("FILE")
      ->group(kGroup);
  app.add_option("--tls-server-name", options->server_name,
                 "The name in the scheduler's certificate, where it is not that of its address")
      ->type_name("NAME")
      ->group(kGroup);
  // No flag takes the token itself: whoever lists processes would read it.
  app.add_option("--token-file", options->token_file,
                 "File with a token (also LONGHAUL_TOKEN_FILE, or the token itself in LONGHAUL_TOKEN)")
      ->type_name("FILE")
      ->group(kGroup);
}

}  // namespace longhaul::channel
