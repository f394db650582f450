// One scheduling pass over a table (scheduler.h has the policy). Made, run once, thrown away. What it decides is the
// same whether it tells of those who wait or not; what is only told is behind `telling_`.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "server/core/quota_line.h"
#include "server/core/scheduler.h"
#include "server/core/scheduler_table.h"
#include "server/core/scheduler_timeline.h"

namespace longhaul::server {

class SchedulerPass {
 public:
  SchedulerPass(SchedulerTable* table, PlanTime now, bool telling);
  PlanResult Run();

 private:
  // A need that fitted nowhere in a pool, and where it came nearest. Resources only shrink during a pass: what needs as
  // much of everything does not fit either.
  struct Misfit {
    Need need;
    int worker = -1;  // -1 = no worker may be asked
    int device = -1;
    int rank = -1;  // how much of the need there is; 0 = the device could not hold it, were it empty
  };
  struct GroupState {
    int refused = -1;  // verdict: nothing has room for any job of the group in this pass
    // Of a job that fits but would delay a reservation: one that runs as long, or longer, would too.
    int delays = -1;
    double delays_seconds = std::numeric_limits<double>::infinity();
    bool reservable = true;
    bool tried = false;    // see Tried
    int cursors = -1;      // index into cursors_, one an option: the devices before it are full for this group
    double fraction = -1;  // of the first option's class that one job takes; -1 = not worked out yet
    // Of validations: when the first may start; -1 = not worked out yet. How many run at once, on workers together.
    int64_t validation_boot_micros = -1;
    int validation_slots = 0;
  };
  struct Spot {
    int worker = -1;
    int device = -1;  // of the fleet; -1 = none
  };

  // ---- The queue (scheduler_pass.cc) ----
  std::vector<const scheduling::Bucket*> OrderedBuckets() const;
  void RunTier(const std::vector<const scheduling::Bucket*>& tier);
  bool MayReserve(const GroupState& state) const;
  bool MayReserve(const scheduling::Entry& entry);
  bool HasQuota(int project) const;
  bool Tried(const scheduling::Entry& entry);
  void NoteTried(const scheduling::Entry& entry);
  bool Closed(const scheduling::Entry& entry);
  void Consider(const scheduling::Entry& entry);
  void ConsiderTrain(const scheduling::Entry& entry, const scheduling::Group& group);
  void ConsiderValidation(const scheduling::Entry& entry, const scheduling::Group& group);
  void AddWait(const scheduling::Entry& entry, const scheduling::Group& group, int verdict, int reservation);
  int AddVerdict(Verdict verdict);
  int TextVerdict(Reason reason, std::string text);
  int BackoffVerdict(int64_t until_wall_micros);
  GroupState& StateOf(int group) { return group_states_[static_cast<size_t>(group)]; }

  // ---- What is told of the time (scheduler_expect.cc) ----
  void CountBacklog();
  void HoldQuota(int project, const Need& need, int64_t end);
  int64_t Expect(const scheduling::Entry& entry, const scheduling::Group& group, int verdict, int reservation);
  int64_t ExpectValidation(const scheduling::Entry& entry, const scheduling::Group& group);
  void FirstValidation(const scheduling::Group& group, GroupState* state);
  double FractionOf(const scheduling::Option& option) const;

  // ---- Starting (scheduler_start.cc) ----
  int64_t DurationMicros(const scheduling::Entry& entry, const scheduling::Option& option, PlanPoint point) const;
  bool OverQuota(int project, const Need& need, int64_t end) const;
  bool OverQuotaEverywhere(const scheduling::Entry& entry, const scheduling::Group& group) const;
  int QuotaVerdict(const scheduling::Entry& entry, const scheduling::Group& group);
  int KeptQuotaVerdict(int project);
  int DelayVerdict(int reservation);
  // -1 = started; else the verdict.
  int TryStart(const scheduling::Entry& entry, const scheduling::Group& group);
  bool FindSpot(const scheduling::Entry& entry, const scheduling::Group& group, size_t option, Spot* spot,
                bool* delays);
  bool HasRoom(const scheduling::Group& group, int device, const Need& need) const;
  const Misfit* KnownMisfit(const scheduling::Option& option, const Need& need) const;
  Misfit Nearest(const scheduling::Group& group, const scheduling::Option& option, const Need& need);
  int ShortVerdict(const scheduling::Group& group);
  void CountReady();
  void StartAt(const scheduling::Entry& entry, const scheduling::Group& group, const scheduling::Option& option,
               Spot spot);
  PlanPoint PointAt(const scheduling::Entry& entry, const scheduling::Option& option, Spot spot) const;
  void Take(Spot spot, const Need& need, int64_t end);

  // ---- Reservations and preemption (scheduler_reserve.cc) ----
  // -1 = no place; *left_out: an option was not looked at, for the project's quota.
  int Reserve(const scheduling::Entry& entry, const scheduling::Group& group, bool* left_out);
  bool FindReservation(const scheduling::Entry& entry, const scheduling::Group& group, Spot* spot, int64_t* start,
                       const scheduling::Option** chosen, bool* left_out);
  bool Preempt(const scheduling::Entry& entry, const scheduling::Group& group, Spot* spot,
               const scheduling::Option** chosen);
  bool FindVictims(int worker, int device, const Need& need, PriorityClass below, int highest);

  SchedulerTable& table_;
  const scheduling::Fleet& fleet_;
  const PlanTime now_;
  const bool telling_;
  scheduling::FreeResources free_;
  Timeline timeline_;
  PlanResult result_;
  std::vector<GroupState> group_states_;
  std::vector<uint8_t> closed_;  // by group: its jobs start nothing and reserve nothing any more
  std::vector<int> cursors_;
  std::vector<std::vector<Misfit>> misfits_;        // by pool; told only
  std::vector<scheduling::Project> projects_;       // what they hold, with what this pass has started
  std::vector<std::vector<int>> reserved_of_;       // by project: indices of its reservations
  std::vector<int> kept_quota_;                     // by project: the verdict; -1 = not needed yet
  std::map<std::pair<int, int>, int> over_quota_;   // verdict by project and group
  std::set<std::pair<int, int>> unreservable_;      // project and group; see MayReserve
  std::set<std::pair<int, int>> tried_with_quota_;  // the same; see Tried
  std::vector<int> ready_;                          // train jobs that might start now, by class; see CountReady
  std::vector<std::vector<int>> stopped_;           // by worker: running attempts that this pass preempts
  std::vector<double> backlog_seconds_;             // by class: how long it is busy with what comes before
  std::vector<int64_t> reserved_until_;             // by class: the latest reserved start
  std::vector<double> validation_backlog_seconds_;  // by digest: of the validations that wait before
  std::vector<QuotaLine> quota_lines_;              // by project; told only
  std::vector<int> candidates_;                     // of FindVictims
  std::vector<int> victims_;                        // what FindVictims found
  bool ready_counted_ = false;
  int tried_ = 0;  // as Tried counts them
  int64_t looks_ = 0;
  int64_t told_looks_ = 0;  // for the sake of verdicts
  int depth_verdict_ = -1;
  int behind_starts_verdict_ = -1;
};

}  // namespace longhaul::server
