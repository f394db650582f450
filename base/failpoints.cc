#include "base/failpoints.h"

#include <signal.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <mutex>

#include "base/check.h"
#include "base/error.h"

namespace longhaul {
namespace {

struct Action {
  enum class Kind { kCrash, kError, kSleep } kind = Kind::kError;
  int64_t sleep_ms = 0;
  int64_t first = 1;  // of the hits that act
  int64_t last = INT64_MAX;
  int64_t hits = 0;
  int64_t arming = 0;  // which one it is of
};

enum State { kUnread, kDisarmed, kArmed };  // kUnread: the environment has not been looked at yet

std::atomic<State> state{kUnread};
std::mutex table_mutex;                            // guards `table` and the changes of `state`
std::map<std::string, Action, std::less<>> table;  // by failpoint name
int64_t armings = 0;                               // guarded by table_mutex
// Signalled with each change of `table`. Never destroyed: a thread that sleeps keeps no process from its end.
std::condition_variable& table_changed = *new std::condition_variable;

// -1 where it is not a number, whole and without sign.
int64_t ParseNumber(std::string_view text) {
  int64_t number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size() ? number : -1;
}

// A failpoint that nobody understands would make its test pass for the wrong reason: CHECK, not ignore.
Action ParseAction(const std::string& name, std::string_view text) {
  Action action;
  bool good = true;
  if (const size_t mark = text.find_first_of("@*"); mark != std::string_view::npos) {
    action.last = ParseNumber(text.substr(mark + 1));
    action.first = text[mark] == '@' ? action.last : 1;
    good = action.last >= 1;
    text = text.substr(0, mark);
  }
  constexpr std::string_view kSleep = "sleep:";
  if (text == "crash") {
    action.kind = Action::Kind::kCrash;
  } else if (text.starts_with(kSleep)) {
    action.kind = Action::Kind::kSleep;
    action.sleep_ms = ParseNumber(text.substr(kSleep.size()));
  } else {
    good = good && text == "error";
  }
  LH_CHECK(good && action.sleep_ms >= 0,
           "failpoint '" + name + "': the action must be crash, error or sleep:<ms>, and @N or *N behind it");
  return action;
}

// REQUIRES: table_mutex is held.
void ReadEnvironmentOnce() {
  if (state.load(std::memory_order_relaxed) != kUnread) return;
  const char* variable = std::getenv("LONGHAUL_FAILPOINTS");
  std::string_view rest = variable == nullptr ? "" : variable;
  while (!rest.empty()) {
    const size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view entry = rest.substr(0, comma);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    if (entry.empty()) continue;
    const size_t equals = entry.find('=');
    LH_CHECK(equals != std::string_view::npos && equals > 0,
             "LONGHAUL_FAILPOINTS: '" + std::string(entry) + "' is not name=action");
    const std::string name(entry.substr(0, equals));
    table[name] = ParseAction(name, entry.substr(equals + 1));
  }
  state.store(table.empty() ? kDisarmed : kArmed, std::memory_order_release);
}

// Until the time is over, or it is armed anew or disarmed: so a test need not guess how long is long enough.
void Sleep(std::string_view name, const Action& action) {
  std::unique_lock<std::mutex> lock(table_mutex);
  table_changed.wait_for(lock, std::chrono::milliseconds(action.sleep_ms), [&] {
    const auto it = table.find(name);
    return it == table.end() || it->second.arming != action.arming;
  });
}

}  // namespace

absl::Status Failpoint(std::string_view name) {
  if (state.load(std::memory_order_acquire) == kDisarmed) return absl::OkStatus();
  Action action;
  {
    const std::lock_guard<std::mutex> lock(table_mutex);
    ReadEnvironmentOnce();
    const auto it = table.find(name);
    if (it == table.end()) return absl::OkStatus();
    const int64_t hit = ++it->second.hits;
    if (hit < it->second.first || hit > it->second.last) return absl::OkStatus();
    action = it->second;
  }
  switch (action.kind) {
    case Action::Kind::kCrash:
      ::raise(SIGKILL);
      return absl::OkStatus();
    case Action::Kind::kError:
      return MakeError(absl::StatusCode::kUnavailable, "FAILPOINT", "failpoint " + std::string(name));
    case Action::Kind::kSleep:
      Sleep(name, action);
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

void ArmFailpoint(const std::string& name, const std::string& action) {
  Action parsed = ParseAction(name, action);
  const std::lock_guard<std::mutex> lock(table_mutex);
  ReadEnvironmentOnce();
  parsed.arming = ++armings;
  table[name] = parsed;
  state.store(kArmed, std::memory_order_release);
  table_changed.notify_all();
}

bool FailpointIsArmed(std::string_view name) {
  if (state.load(std::memory_order_acquire) == kDisarmed) return false;
  const std::lock_guard<std::mutex> lock(table_mutex);
  ReadEnvironmentOnce();
  return table.find(name) != table.end();
}

int64_t FailpointHits(std::string_view name) {
  const std::lock_guard<std::mutex> lock(table_mutex);
  const auto it = table.find(name);
  return it == table.end() ? 0 : it->second.hits;
}

void DisarmFailpoints() {
  const std::lock_guard<std::mutex> lock(table_mutex);
  table.clear();
  state.store(kDisarmed, std::memory_order_release);
  table_changed.notify_all();
}

}  // namespace longhaul
