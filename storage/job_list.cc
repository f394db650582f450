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

// Beyond this many rows one leading index is as good as another.
constexpr int64_t kRowsCounted = 1'000;

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

// Text and values of one query, built together so that they cannot disagree.
class ListQuery {
 public:
  void And(const std::string& condition) { where_ += (where_.empty() ? " WHERE " : " AND ") + condition; }
  std::string Int(int64_t value) {
    values_.push_back({++parameters_, value});
    return "?" + std::to_string(parameters_);
  }
  std::string Text(const std::string& value) {
    texts_.push_back({++parameters_, value});
    return "?" + std::to_string(parameters_);
  }
  // REQUIRES: this outlives the statement.
  absl::StatusOr<Statement> Prepare(Db* db, const std::string& head, const std::string& tail) const {
    LH_ASSIGN_OR_RETURN(Statement statement, db->PrepareText(head + where_ + tail));
    for (const auto& [index, value] : values_) statement.Bind(index, value);
    for (const auto& [index, text] : texts_) statement.BindText(index, text);
    return statement;
  }
  absl::StatusOr<std::vector<Row>> Run(Db* db, const std::string& from, const std::string& tail) const {
    LH_ASSIGN_OR_RETURN(Statement statement, Prepare(db, "SELECT jobs.create_number, jobs.body FROM " + from, tail));
    std::vector<Row> rows;
    while (true) {
      LH_ASSIGN_OR_RETURN(const bool row, statement.Step());
      if (!row) return rows;
      rows.push_back({statement.Int(0), statement.Text(1)});
    }
  }

 private:
  std::string where_;
  int parameters_ = 0;
  std::vector<std::pair<int, int64_t>> values_;
  std::vector<std::pair<int, std::string>> texts_;
};

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

void AndJobs(const JobFilter& filter, int state, ListQuery* query) {
  if (!filter.project.empty()) query->And("jobs.project=" + query->Text(filter.project));
  if (!filter.model.empty()) query->And("jobs.model=" + query->Text(filter.model));
  if (state != 0) query->And("jobs.state=" + query->Int(state));
  if (Ended(state)) query->And("jobs.state>=10");  // as the index has it: so that it may be used
}

// Returns what to read from.
std::string AndLabel(const JobFilter& filter, int state, const Label& label, ListQuery* query) {
  if (!filter.project.empty()) query->And("label.project=" + query->Text(filter.project));
  query->And("label.key=" + query->Text(label.first));
  query->And("label.value=" + query->Text(label.second));
  if (Ended(state)) query->And("label.end_state=" + query->Int(state));
  const std::string ended = filter.project.empty() ? "job_labels_ended_of_all" : "job_labels_ended";
  return "job_labels AS label" + (Ended(state) ? " INDEXED BY " + ended : "");
}

// The label whose rows are read; null: those of the model or the state. Of several, what has the fewest, where it has
// few: 50 jobs of an experiment are not looked for among the 100,000 of its team.
absl::StatusOr<const Label*> LeadingLabel(Db* db, const JobFilter& filter, int state) {
  if (filter.labels.empty() || (state != 0 && !Ended(state))) return nullptr;
  const Label* lead = &*filter.labels.begin();
  if (filter.labels.size() == 1 && filter.model.empty()) return lead;
  const std::string head = "SELECT COUNT(*) FROM (SELECT 1 FROM ";
  int64_t fewest = kRowsCounted;
  const auto count = [&](const Label* label) -> absl::Status {
    ListQuery query;
    const std::string from =
        label != nullptr ? AndLabel(filter, state, *label, &query) : "jobs INDEXED BY " + IndexFor(filter, state);
    if (label == nullptr) AndJobs(filter, state, &query);
    const std::string tail = " LIMIT " + query.Int(kRowsCounted) + ")";
    LH_ASSIGN_OR_RETURN(Statement statement, query.Prepare(db, head + from, tail));
    LH_RETURN_IF_ERROR(statement.Step().status());
    if (statement.Int(0) < fewest) {
      fewest = statement.Int(0);
      lead = label;
    }
    return absl::OkStatus();
  };
  for (const Label& label : filter.labels) LH_RETURN_IF_ERROR(count(&label));
  if (!filter.model.empty()) LH_RETURN_IF_ERROR(count(nullptr));
  return lead;
}

// One query: of one state, or (0) of all.
absl::StatusOr<std::vector<Row>> RunOne(Db* db, const JobFilter& filter, const Range& range, int state, int most) {
  ListQuery query;
  std::string from = "jobs";
  std::string number = "jobs.create_number";
  const Label* lead = nullptr;
  if (filter.id_prefix.size() >= kSelectivePrefixBytes) {
    number = "+jobs.create_number";  // few rows, sorted
  } else {
    LH_ASSIGN_OR_RETURN(lead, LeadingLabel(db, filter, state));
    if (lead != nullptr) {
      // By number: labels are in its order, and so are the jobs; their ids are spread over all of the index.
      from = AndLabel(filter, state, *lead, &query) + " CROSS JOIN jobs ON jobs.create_number=label.create_number";
      number = "label.create_number";
    } else if (const std::string index = IndexFor(filter, state); !index.empty()) {
      from += " INDEXED BY " + index;
    }
  }
  AndJobs(filter, state, &query);
  for (const Label& label : filter.labels) {
    if (&label == lead) continue;
    const std::string key = query.Text(label.first);
    query.And("EXISTS (SELECT 1 FROM job_labels AS other WHERE other.project=jobs.project AND other.key=" + key +
              " AND other.value=" + query.Text(label.second) + " AND other.create_number=jobs.create_number)");
  }
  if (!filter.id_prefix.empty()) {
    query.And("jobs.id>=" + query.Text(filter.id_prefix));
    const std::string end = PrefixEnd(filter.id_prefix);
    if (!end.empty()) query.And("jobs.id<" + query.Text(end));
  }
  query.And(number + ">" + query.Int(range.above));
  if (range.below != 0) query.And(number + "<" + query.Int(range.below));
  const std::string order = " ORDER BY " + number + (filter.oldest_first ? "" : " DESC");
  return query.Run(db, from, order + " LIMIT " + query.Int(most));
}

}  // namespace

absl::StatusOr<JobPage> QueryJobs(Db* db, const JobFilter& filter) {
  const int page_size = std::clamp(filter.page_size, 1, limits::kMaxPageSize);
  LH_ASSIGN_OR_RETURN(const Range range, RangeOf(db, filter));
  std::vector<int> states;
  for (const JobState state : filter.states) states.push_back(static_cast<int>(state));
  if (states.empty()) states = {0};
  std::sort(states.begin(), states.end());
  states.erase(std::unique(states.begin(), states.end()), states.end());
  std::vector<Row> rows;
  for (const int state : states) {
    LH_ASSIGN_OR_RETURN(std::vector<Row> some, RunOne(db, filter, range, state, page_size + 1));
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

}  // namespace longhaul::storage
