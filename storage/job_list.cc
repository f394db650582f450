#include "storage/job_list.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/status_macros.h"
#include "server/core/codec.h"
#include "server/core/page_token.h"

namespace longhaul::storage {
namespace {

using namespace server;  // NOLINT: the domain's values are this file's subject

// "ftjob-" and two of the 32 letters: a thousandth of all jobs, which may be sorted.
constexpr size_t kSelectivePrefixBytes = 8;

using Label = std::pair<const std::string, std::string>;

struct Row {
  int64_t create_number = 0;
  std::string body;
};

// The first string after every string with this prefix; "" where there is none.
std::string PrefixEnd(std::string prefix) {
  while (!prefix.empty() && static_cast<unsigned char>(prefix.back()) == 0xff) prefix.pop_back();
  if (!prefix.empty()) prefix.back() = static_cast<char>(prefix.back() + 1);
  return prefix;
}

// The values of one query, named as its text is built, so that they cannot disagree.
class Values {
 public:
  std::string Int(int64_t value) {
    ints_.push_back({++count_, value});
    return "?" + std::to_string(count_);
  }
  std::string Text(const std::string& value) {
    texts_.push_back({++count_, value});
    return "?" + std::to_string(count_);
  }
  // REQUIRES: this outlives what is done with `statement`.
  void BindTo(Statement* statement) const {
    for (const auto& [index, value] : ints_) statement->Bind(index, value);
    for (const auto& [index, text] : texts_) statement->BindText(index, text);
  }

 private:
  int count_ = 0;
  std::vector<std::pair<int, int64_t>> ints_;
  std::vector<std::pair<int, std::string>> texts_;
};

std::string Where(const std::vector<std::string>& conditions) {
  std::string text;
  for (const std::string& one : conditions) text += (text.empty() ? " WHERE " : " AND ") + one;
  return text;
}

// Which rows of the list: strictly behind the page token, within the range of time.
struct Range {
  int64_t above = 0;  // create_number > above
  int64_t below = 0;  // create_number < below; 0 = no bound
};

absl::StatusOr<Range> RangeOf(Db* db, const JobFilter& filter) {
  Range range;
  const auto narrow_below = [&range](int64_t number) {
    range.below = range.below == 0 ? number : std::min(range.below, number);
  };
  if (!filter.page_token.empty()) {
    LH_ASSIGN_OR_RETURN(const uint64_t last, ReadPageToken(filter));
    if (filter.oldest_first) {
      range.above = static_cast<int64_t>(last);
    } else {
      narrow_below(static_cast<int64_t>(last));
    }
  }
  if (filter.created_after_micros != 0) {
    LH_ASSIGN_OR_RETURN(Statement last, db->Prepare("SELECT create_number FROM jobs WHERE create_wall_micros<=?1 "
                                                    "ORDER BY create_wall_micros DESC, create_number DESC LIMIT 1"));
    LH_ASSIGN_OR_RETURN(const bool row, last.Bind(1, filter.created_after_micros).Step());
    if (row) range.above = std::max(range.above, last.Int(0));
  }
  if (filter.created_before_micros != 0) {
    LH_ASSIGN_OR_RETURN(Statement first, db->Prepare("SELECT create_number FROM jobs WHERE create_wall_micros>=?1 "
                                                     "ORDER BY create_wall_micros, create_number LIMIT 1"));
    LH_ASSIGN_OR_RETURN(const bool row, first.Bind(1, filter.created_before_micros).Step());
    if (row) narrow_below(first.Int(0));
  }
  return range;
}

static_assert(static_cast<int>(JobState::kSucceeded) == 10 && static_cast<int>(JobState::kCancelled) == 12,
              "the indexes of what has ended say state IN (10, 11, 12)");
bool Ended(int state) { return state != 0 && IsTerminal(static_cast<JobState>(state)); }

// The index whose rows come in the order of the list; "" is that of all jobs. `state` 0: any. What lives is found by
// its state, whatever else is asked: there is little of it.
std::string IndexFor(const JobFilter& filter, int state) {
  const std::string project = filter.project.empty() ? "" : "project_";
  if (!filter.model.empty() && Ended(state)) return "jobs_ended_by_" + project + "model";
  if (!filter.model.empty() && state == 0) return "jobs_by_" + project + "model";
  if (state != 0) return "jobs_by_" + project + "state";
  return filter.project.empty() ? "" : "jobs_by_project";
}

// One query's text and values: jobs of one state (0: of any) in the range, in the order of their numbers.
class StateQuery {
 public:
  StateQuery(const JobFilter& filter, const Range& range, int state) : filter_(filter), range_(range), state_(state) {}
  absl::StatusOr<std::vector<Row>> Run(Db* db, int most) {
    const std::string limit = " LIMIT " + values_.Int(most);
    const std::string text = "SELECT jobs.create_number, jobs.body FROM " + Text(limit) + limit;
    LH_ASSIGN_OR_RETURN(Statement statement, db->PrepareText(text));
    values_.BindTo(&statement);
    std::vector<Row> rows;
    while (true) {
      LH_ASSIGN_OR_RETURN(const bool row, statement.Step());
      if (!row) return rows;
      rows.push_back({statement.Int(0), statement.Text(1)});
    }
  }

 private:
  std::string Text(const std::string& limit);
  std::vector<std::string> OfLabel(const Label& label);
  std::string NumbersOf(const Label& label);
  // That the job at hand has it.
  std::string OfJob(const Label& label) {
    std::vector<std::string> conditions = OfLabel(label);
    conditions.push_back("create_number=jobs.create_number");
    return "EXISTS (SELECT 1 FROM job_labels" + Where(conditions) + ")";
  }
  std::string NumbersOfJobs();
  std::vector<std::string> OfJobs();
  std::vector<std::string> OfId();
  void AddRange(const std::string& number, std::vector<std::string>* conditions);
  std::string Order() const { return filter_.oldest_first ? "" : " DESC"; }

  const JobFilter& filter_;
  const Range& range_;
  const int state_;
  Values values_;
};

void StateQuery::AddRange(const std::string& number, std::vector<std::string>* conditions) {
  conditions->push_back(number + ">" + values_.Int(range_.above));
  if (range_.below != 0) conditions->push_back(number + "<" + values_.Int(range_.below));
}

std::vector<std::string> StateQuery::OfJobs() {
  std::vector<std::string> conditions;
  if (!filter_.project.empty()) conditions.push_back("jobs.project=" + values_.Text(filter_.project));
  if (!filter_.model.empty()) conditions.push_back("jobs.model=" + values_.Text(filter_.model));
  if (state_ != 0) conditions.push_back("jobs.state=" + values_.Int(state_));
  if (Ended(state_)) conditions.push_back("jobs.state IN (10, 11, 12)");  // as the index has it: so that it may be used
  return conditions;
}

std::vector<std::string> StateQuery::OfId() {
  std::vector<std::string> conditions;
  if (filter_.id_prefix.empty()) return conditions;
  conditions.push_back("jobs.id>=" + values_.Text(filter_.id_prefix));
  const std::string end = PrefixEnd(filter_.id_prefix);
  if (!end.empty()) conditions.push_back("jobs.id<" + values_.Text(end));
  return conditions;
}

std::vector<std::string> StateQuery::OfLabel(const Label& label) {
  std::vector<std::string> conditions;
  if (!filter_.project.empty()) conditions.push_back("project=" + values_.Text(filter_.project));
  conditions.push_back("key=" + values_.Text(label.first));
  conditions.push_back("value=" + values_.Text(label.second));
  return conditions;
}

// Of jobs with the label: of the state, where that is one in which jobs end, else of the model, where one is asked for.
std::string StateQuery::NumbersOf(const Label& label) {
  std::vector<std::string> conditions = OfLabel(label);
  const bool of_all = filter_.project.empty();
  std::string index;
  if (Ended(state_)) {
    conditions.push_back("end_state=" + values_.Int(state_));
    index = of_all ? "job_labels_ended_of_all" : "job_labels_ended";
  } else if (!filter_.model.empty()) {
    conditions.push_back("model=" + values_.Text(filter_.model));
    index = of_all ? "job_labels_by_model_of_all" : "job_labels_by_model";
  }
  AddRange("create_number", &conditions);
  return "SELECT create_number FROM job_labels" + (index.empty() ? "" : " INDEXED BY " + index) + Where(conditions);
}

std::string StateQuery::NumbersOfJobs() {
  std::vector<std::string> conditions = OfJobs();
  AddRange("create_number", &conditions);
  return "SELECT create_number FROM jobs INDEXED BY " + IndexFor(filter_, state_) + Where(conditions);
}

// Everything behind "FROM" but the limit.
std::string StateQuery::Text(const std::string& limit) {
  std::vector<std::string> conditions = OfId();
  if (filter_.id_prefix.size() >= kSelectivePrefixBytes) {
    for (std::string& one : OfJobs()) conditions.push_back(std::move(one));
    for (const Label& label : filter_.labels) {
      conditions.push_back(OfJob(label));
    }
    AddRange("jobs.create_number", &conditions);
    return "jobs" + Where(conditions) + " ORDER BY +jobs.create_number" + Order();  // few rows, sorted
  }
  const bool alive = state_ != 0 && !Ended(state_);
  if (filter_.labels.empty() || alive) {
    for (std::string& one : OfJobs()) conditions.push_back(std::move(one));
    for (const Label& label : filter_.labels) conditions.push_back(OfJob(label));
    AddRange("jobs.create_number", &conditions);
    const std::string index = IndexFor(filter_, state_);
    return "jobs" + (index.empty() ? "" : " INDEXED BY " + index) + Where(conditions) + " ORDER BY jobs.create_number" +
           Order();
  }
  // Numbers that are in every list: SQLite merges lists that are in order, and reads of a job only its numbers in
  // indexes until it is found. Two lists of 100,000 cost 10 ms where the jobs themselves cost a second.
  std::string lists;
  for (const Label& label : filter_.labels) lists += (lists.empty() ? "" : " INTERSECT ") + NumbersOf(label);
  if (!filter_.model.empty() && Ended(state_)) lists += " INTERSECT " + NumbersOfJobs();
  lists += " ORDER BY 1" + Order() + (filter_.id_prefix.empty() ? limit : "");
  return "(" + lists + ") AS hit CROSS JOIN jobs ON jobs.create_number=hit.create_number" + Where(conditions) +
         " ORDER BY hit.create_number" + Order();
}

}  // namespace

namespace {

absl::StatusOr<JobPage> QuerySnapshot(Db* db, const JobFilter& filter) {
  const int page_size = std::clamp(filter.page_size, 1, limits::kMaxPageSize);
  LH_ASSIGN_OR_RETURN(const Range range, RangeOf(db, filter));
  std::vector<int> states;
  for (const JobState state : filter.states) states.push_back(static_cast<int>(state));
  if (states.empty()) states = {0};
  std::sort(states.begin(), states.end());
  states.erase(std::unique(states.begin(), states.end()), states.end());
  std::vector<Row> rows;
  for (const int state : states) {
    LH_ASSIGN_OR_RETURN(std::vector<Row> some, StateQuery(filter, range, state).Run(db, page_size + 1));
    rows.insert(rows.end(), std::make_move_iterator(some.begin()), std::make_move_iterator(some.end()));
  }
  std::sort(rows.begin(), rows.end(), [&](const Row& a, const Row& b) {
    return filter.oldest_first ? a.create_number < b.create_number : a.create_number > b.create_number;
  });
  const bool more = static_cast<int>(rows.size()) > page_size;
  if (more) rows.resize(static_cast<size_t>(page_size));
  JobPage page;
  for (const Row& row : rows) {
    LH_ASSIGN_OR_RETURN(Job job, DecodeJob(row.body));
    page.jobs.push_back(std::move(job));
  }
  if (more) page.next_page_token = MakePageToken(filter, page.jobs.back().create_number);
  return page;
}

}  // namespace

// One read transaction: a job that changes its state between two of the queries is on the page once.
absl::StatusOr<JobPage> QueryJobs(Db* db, const JobFilter& filter) {
  LH_RETURN_IF_ERROR(db->Exec("BEGIN"));
  absl::StatusOr<JobPage> page = QuerySnapshot(db, filter);
  const absl::Status ended = db->Exec("COMMIT");
  if (page.ok() && !ended.ok()) return ended;
  return page;
}

}  // namespace longhaul::storage
