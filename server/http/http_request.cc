#include "server/http/http_request.h"

#include <algorithm>

namespace longhaul::server {
namespace {

constexpr std::string_view kLineEnd = "\r\n";

bool IsTokenCharacter(char c) {
  constexpr std::string_view kPunctuation = "!#$%&'*+-.^_`|~";
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         kPunctuation.find(c) != std::string_view::npos;
}
bool IsToken(std::string_view text) { return !text.empty() && std::all_of(text.begin(), text.end(), IsTokenCharacter); }
bool IsVisible(char c) { return c > 0x20 && c < 0x7f; }
bool IsText(char c) { return c == '\t' || static_cast<unsigned char>(c) >= 0x20; }

std::string_view TakeLine(std::string_view* head) {
  const size_t end = head->find(kLineEnd);
  const std::string_view line = head->substr(0, end);
  head->remove_prefix(std::min(head->size(), line.size() + kLineEnd.size()));
  return line;
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// "GET /path?query HTTP/1.1"
int ParseRequestLine(std::string_view line, HttpRequest* request) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) return 400;
  const std::string_view method = line.substr(0, first);
  std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  if (!IsToken(method) || target.empty() || target.front() != '/') return 400;
  if (!std::all_of(target.begin(), target.end(), IsVisible)) return 400;
  if (!version.starts_with("HTTP/")) return 400;
  if (version != "HTTP/1.1" && version != "HTTP/1.0") return 505;
  request->method = std::string(method);
  request->path = std::string(target.substr(0, target.find('?')));
  return 200;
}

bool SameName(std::string_view a, std::string_view lower_case) {
  return std::equal(a.begin(), a.end(), lower_case.begin(), lower_case.end(),
                    [](char x, char y) { return (x >= 'A' && x <= 'Z' ? x + ('a' - 'A') : x) == y; });
}

}  // namespace

HttpHead ParseHttpHead(std::string_view head) {
  HttpHead out;
  const std::string_view request_line = TakeLine(&head);
  out.status = ParseRequestLine(request_line, &out.request);
  if (out.status != 200) return out;
  int hosts = 0;
  int authorizations = 0;
  while (!head.empty()) {
    const std::string_view line = TakeLine(&head);
    if (line.empty()) break;
    const size_t colon = line.find(':');
    const std::string_view value = colon == std::string_view::npos ? "" : Trim(line.substr(colon + 1));
    if (colon == std::string_view::npos || !IsToken(line.substr(0, colon)) ||
        !std::all_of(value.begin(), value.end(), IsText)) {
      out.status = 400;
      return out;
    }
    if (SameName(line.substr(0, colon), "host")) {
      ++hosts;
      out.request.host = std::string(value);
    } else if (SameName(line.substr(0, colon), "authorization")) {
      ++authorizations;
      out.request.authorization = std::string(value);
    }
  }
  const bool needs_host = request_line.ends_with("HTTP/1.1");
  if (hosts > 1 || authorizations > 1 || (needs_host && hosts == 0)) out.status = 400;
  return out;
}

bool NamesLoopback(std::string_view host) {
  if (host.starts_with("[::1]")) return host.size() == 5 || host[5] == ':';
  const std::string_view name = host.substr(0, host.find(':'));
  return name == "127.0.0.1" || SameName(name, "localhost");
}

}  // namespace longhaul::server
