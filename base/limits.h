// Every limit of Longhaul, in one place. A message that refuses something names the limit's value.
#pragma once

#include <cstdint>

namespace longhaul::limits {

// API
inline constexpr int64_t kMaxGrpcMessageBytes = 4 << 20;
inline constexpr int64_t kBlobChunkBytes = 1 << 20;
inline constexpr int64_t kMaxBlobBytes = int64_t{64} << 30;
inline constexpr int kMaxBlobsPerFindMissing = 1000;
inline constexpr int kMaxPageSize = 1000;
inline constexpr int kDefaultPageSize = 50;
inline constexpr int64_t kMaxListBytes = 3 << 20;  // a page ends before it would have more
inline constexpr int kMaxLabelsInFilter = 8;
inline constexpr int kMaxLabels = 64;
inline constexpr int kMaxLabelBytes = 256;
inline constexpr int kMaxMetadata = 64;
inline constexpr int kMaxMetadataValueBytes = 512;
inline constexpr int kMaxSuffixBytes = 64;
inline constexpr int kMaxRequestIdBytes = 128;
inline constexpr int kMaxActiveJobsPerProject = 100'000;
inline constexpr int kMaxWatchStreams = 10'000;
inline constexpr int64_t kRequestIdTtlDays = 30;
inline constexpr int64_t kBlobGraceHours = 24;
// A blob that has lost its last checkpoint stays so long: for who reads it just then, and for who was told just before
// that it is there and is about to refer to it. At two checkpoints kept, what a job writes within it is what it holds
// of the disk beyond them.
inline constexpr int64_t kDroppedBlobGraceMs = 300'000;
// Trailing metadata of an error stays under the 8 KiB that gRPC clients accept: the message percent-encoded, and the
// details, which repeat it, in base64.
inline constexpr int64_t kMaxErrorMessageBytes = 1800;
inline constexpr int64_t kMaxErrorDetailBytes = 3900;
inline constexpr int kMaxProjectBytes = 64;
inline constexpr int kMaxWorkerIdBytes = 128;
inline constexpr int kMaxJobIdBytes = 128;
inline constexpr int kMaxTransfers = 256;
inline constexpr int kMaxRpcThreads = 1024;
inline constexpr int kMaxHttpHeaderBytes = 16'384;
inline constexpr int kMaxPageJobs = 100;
inline constexpr int kMaxPendingWatchEvents = 64;
inline constexpr int64_t kWatchHeartbeatMs = 10'000;
inline constexpr int64_t kMaxJobFileBytes = 1 << 20;
inline constexpr int64_t kMaxTransferMs = int64_t{24} * 3600 * 1000;
inline constexpr int kMaxArtifactNameBytes = 255;    // of a file in a checkpoint's or an artifact's manifest
inline constexpr int64_t kLogChunkBytes = 32 << 10;  // what one reader of a log holds of it
inline constexpr int kMaxLogStreams = 1'000;

// Access: tokens, callers, TLS
inline constexpr int kMaxTokens = 10'000;
inline constexpr int kMaxTokenNameBytes = 64;
inline constexpr int64_t kDefaultTokenDays = 90;
inline constexpr int64_t kMaxTokenDays = 3'650;
inline constexpr int64_t kTokenKeepDays = 90;      // listed that long after they have ended
inline constexpr int64_t kTokenRefreshMs = 1'000;  // a revocation works after at most this
inline constexpr int kMaxStateIdBytes = 64;        // of a state folder's state-id
inline constexpr int kMaxTokenFileBytes = 4'096;
inline constexpr int64_t kMaxPemBytes = 1 << 20;
inline constexpr int64_t kHandshakeMs = 20'000;
inline constexpr int kMaxGrpcMetadataBytes = 16'384;
inline constexpr int kMaxAuthFailuresPerSecond = 10;  // of one host; a token that is valid passes all the same
inline constexpr int kMaxAuthFailureBurst = 200;
inline constexpr int kMaxTokenReadsPerSecond = 10;  // beside the regular ones, for tokens that are not known yet
inline constexpr int kMaxTokenReadBurst = 50;

// Each of these is of one caller on one host (server/call_limits.h); the operator on a plaintext loopback has only the
// server's own limits.
inline constexpr int kMaxCallsPerSecond = 1'000;
inline constexpr int kMaxCallBurst = 2'000;
inline constexpr int kMaxStreamsPerCaller = 5'000;
inline constexpr int kMaxTransfersPerCaller = 64;
inline constexpr int kMaxLogStreamsPerCaller = 64;
inline constexpr int kMaxLogStreamsPerName = 256;  // of one caller on all of its hosts
// Workers that share a token and a host have each its own of these; all of them together
inline constexpr int kMaxSharersCallTimes = 20;  // so many times the calls of one,
inline constexpr int kMaxSharersTransfers = 192;
inline constexpr int kMaxCallersTracked = 20'000;  // workers among them
// A transfer, or a log's reader, that moves no byte so long is ended.
inline constexpr int64_t kTransferStallMs = 60'000;
// Of one name on all of its hosts.
inline constexpr int kMaxStreamsPerName = kMaxWatchStreams / 2;
inline constexpr int kMaxTransfersPerName = kMaxTransfers / 2;
// Workers that share a name are a fleet.
inline constexpr int kMaxWorkerTransfersPerName = kMaxTransfers * 3 / 4;
// Of all callers that are no workers, together: the rest is there for what jobs that run have to store and to fetch.
inline constexpr int kMaxClientTransfers = kMaxTransfers * 3 / 4;
// What a project has uploaded: how many blobs there are is asked with each upload, and takes the longer.
inline constexpr int64_t kMaxProjectUploadBytes = int64_t{4} << 40;
inline constexpr int64_t kMaxProjectBlobs = 100'000;
inline constexpr int64_t kMaxUnfinishedUploads = 1'000;
inline constexpr int64_t kAuditKeepDays = 400;
inline constexpr int kMaxAuditFieldBytes = 256;
// Rows of one caller's refused calls, which change nothing: at once, and one every so often in the long run.
inline constexpr int kMaxRefusedRowBurst = 100;
inline constexpr int64_t kRefusedRowEveryMs = 60'000;
inline constexpr int64_t kServerFaultLineMs = 10'000;  // between two lines about faults that callers do not read
inline constexpr int kMaxAuditPage = 10'000;
inline constexpr int kMaxHttpConnections = 256;
inline constexpr int64_t kHttpRequestMs = 10'000;

// Connections of the gRPC server. A host is an IPv4 address or an IPv6 /64. Which makes room for a new one:
// server/rpc/connection_table.h.
inline constexpr int kMaxConnections = 16'384;
inline constexpr int kMaxConnectionsPerHost = 8'192;       // and never more than half of what there are
inline constexpr int kLoopbackConnections = 64;            // kept for the loopback, and never more than an eighth
inline constexpr int64_t kReservedDescriptors = 1'024;     // of the process's: files, HTTP, gRPC's own
inline constexpr int64_t kConnectionIdleMs = 300'000;      // without a call
inline constexpr int64_t kConnectionAgeMs = 1'800'000;     // then calls go on a new one, its certificate seen anew,
inline constexpr int64_t kConnectionAgeGraceMs = 600'000;  // and what still runs on the old one is ended
inline constexpr int64_t kServerPingMs = 60'000;           // a peer that is gone is found
inline constexpr int64_t kServerPingTimeoutMs = 20'000;    // so much later
inline constexpr int64_t kMinClientPingMs = 10'000;        // clients may ask no oftener whether an idle watch lives
inline constexpr int kMaxStreamsPerConnection = 12'000;    // beyond, the client itself waits
inline constexpr int64_t kMaxRpcMemoryBytes = 512 << 20;   // of what gRPC holds of messages that come in
inline constexpr int64_t kConnectionSweepMs = 1'000;       // between two looks at which have closed
inline constexpr int64_t kEarlySweepMs = 20;               // the same where there is no room
inline constexpr int kMaxAcceptsAtOnce = 64;               // then it is seen whether the server stops
inline constexpr int64_t kNoDescriptorPauseMs = 100;       // before the next is accepted
inline constexpr int64_t kConnectionsFullLineMs = 60'000;  // between two lines about it in the log

// Hyperparameters
inline constexpr int kMaxLoraRank = 1024;
inline constexpr int kMaxBatchSize = 4096;
inline constexpr int kMaxAccumulationSteps = 65'536;
inline constexpr int kMaxEpochs = 1000;
inline constexpr int64_t kMaxSteps = 100'000'000;
inline constexpr int64_t kMaxSequenceLength = int64_t{1} << 24;
inline constexpr double kMaxLoraAlpha = 1e6;
inline constexpr double kMaxLearningRate = 10;
inline constexpr double kMaxWeightDecay = 10;
inline constexpr double kMaxGradNorm = 1e9;
inline constexpr double kMaxLoraDropout = 0.95;
inline constexpr double kMaxAdamBeta = 0.999999;  // of both: what one update adds must be seen in f32
inline constexpr double kMaxAdamEpsilon = 1;
inline constexpr int64_t kMaxDeviceShareBytes = int64_t{1} << 50;
inline constexpr int64_t kMaxEvalExamples = 10'000'000;
inline constexpr int kMaxCpuThreads = 4096;
inline constexpr int kMaxRetryLimit = 1000;
inline constexpr int64_t kMaxRetryBackoffSeconds = 86'400;
inline constexpr int64_t kMaxDeadlineSeconds = int64_t{10} * 366 * 86'400;
inline constexpr int kMaxModelNameBytes = 256;
inline constexpr int kMaxDatasetFileNameBytes = 255;

// Dispatcher and workers
inline constexpr int kMaxCommandsPerCommit = 256;
inline constexpr int64_t kSyncHoldMs = 10'000;
inline constexpr int64_t kLeaseMs = 60'000;
inline constexpr int64_t kWorkerLostMs = 90'000;
inline constexpr int64_t kOrphanMs = 3'600'000;
// A scheduler that starts waits so long at least, however short its leases: for an agent that has just begun its
// longest wait (kMaxBackoffMs), or that waits in vain for the answer of a scheduler that is gone.
inline constexpr int64_t kStartGraceMs = 30'000;
inline constexpr int kMaxWorkers = 10'000;
inline constexpr int64_t kForgetWorkerDays = 30;  // not heard of for so long, with nothing of it left
inline constexpr int64_t kOrphanEndMs = 600'000;  // from the end of that hour until such a trainer is surely gone
inline constexpr int kMaxWorkersForgottenPerSweep = 100;
// Where there is no room for a new worker, one that is away makes it: of the same caller any, of others so long away.
inline constexpr int64_t kForgetWorkerForRoomMs = int64_t{24} * 3600 * 1000;
// Names of projects, device classes and models that the scheduler's table may keep of what is gone: beyond as many as
// it began with and these it is filled afresh.
inline constexpr int kMaxSpareTableNames = 1'000;
// What a worker's host has less of than its attempts explain is taken by others and offered to nobody: beyond the
// slack, in whole steps, so that not every Sync changes what a pass sees.
inline constexpr int64_t kHostBytesSlack = int64_t{512} << 20;
inline constexpr int64_t kHostBytesStep = int64_t{256} << 20;
// Of its disk nothing is written off: what is not there now holds no checkpoint.
inline constexpr int64_t kDiskBytesStep = int64_t{256} << 20;
inline constexpr int kMaxModelsPerWorker = 1000;
inline constexpr int kMaxAttemptsPerWorker = 1000;  // that the scheduler gives it
inline constexpr int kMaxDevicesPerWorker = 64;
inline constexpr int kCheckpointsKept = 2;
inline constexpr int kMaxPlansKept = 1'024;  // estimates, some 2 KiB each
inline constexpr int kDefaultRetryLimit = 3;
inline constexpr int kMetricsChunkPoints = 256;
inline constexpr int64_t kMetricsFlushMs = 2'000;
inline constexpr int kMaxMetricsFlushedPerCommit = 256;  // jobs
inline constexpr int kMaxPendingMetrics = 4'096;         // of a job, while the store fails; then they are thinned
inline constexpr int64_t kMaxMetricsPointsTerminal = 2'000;
inline constexpr int kMaxManifestFiles = 64;          // of a checkpoint or an artifact
inline constexpr int kMaxCheckpointTextBytes = 1024;  // what made a checkpoint, for people; the signature of its plan
inline constexpr int kMaxWarningsPerAttempt = 100;
inline constexpr int kMaxWarningBytes = 4'096;
inline constexpr int kMaxReportTextBytes = 256;  // what a worker calls its host, its build, its devices' classes
inline constexpr int kMaxLengthBuckets = 256;    // of a data report
// A worker names those it has and those that have ended and are being put away, whose place is given to others already.
inline constexpr int kMaxReportsPerSync = 4 * kMaxAttemptsPerWorker;
inline constexpr int kMaxHoldsPerWorker = 2 * kMaxReportsPerSync;  // with what it names and was never given
inline constexpr int64_t kMaxStartBytesPerAnswer = 2 << 20;        // of one Sync; the next carries the rest
inline constexpr int64_t kMaxReportedCount = int64_t{1} << 53;  // bytes, tokens, examples: what a double still counts
inline constexpr int64_t kMaxBackoffSeconds = 3600;
inline constexpr int64_t kStoreRetryMs = 1'000;  // after a failed commit
// What a validation attempt is counted with: tokenizer, template and the longest line, and the examples of the dataset
// with a token in every two bytes, eight bytes each (plan_layout.cc).
inline constexpr int64_t kValidateHostBytes = 512 << 20;
inline constexpr int64_t kValidateHostBytesPerDatasetByte = 4;
inline constexpr int64_t kValidateDiskBytes = 64 << 20;  // beside the dataset
inline constexpr int kMaxBlobsCollectedPerCommit = 256;
inline constexpr int kMaxKeysSweptPerCommit = 1'000;
inline constexpr int64_t kKeySweepAgainMs = 100;     // after a sweep that left some
inline constexpr int kMaxDeletedJobsPerSweep = 256;  // the next sweep goes on behind them
inline constexpr int kMaxLogsPerSweep = 1'000;       // jobs whose logs are looked at, whether there is such a job

// Scheduling (server/core/scheduler.h)
inline constexpr int kMaxReservations = 8;                    // waiting jobs whose start nothing behind them may delay
inline constexpr int kMaxSchedulingDepth = 500;               // shapes of jobs tried in a pass
inline constexpr int64_t kMaxDeviceLooksPerPass = 2'000'000;  // bounds a pass over a fragmented fleet
inline constexpr int kMaxStartsPerPass = 256;                 // the next pass goes on
inline constexpr int64_t kUsageHalfLifeSeconds = 3'600;       // of a project's usage
inline constexpr int kMaxUsageJobsAtStart = 1'000;            // the newest jobs, from which usage is restored
inline constexpr int kMaxPreemptionsPerJob = 2;
inline constexpr int64_t kPreemptMinRunMs = 600'000;    // what runs shorter is not preempted
inline constexpr int64_t kPreemptMinGainSeconds = 60;   // nobody is preempted for a start that comes that soon
inline constexpr int64_t kStopSeconds = 30;             // a stop with its checkpoint, in predictions
inline constexpr int64_t kAttemptOverheadSeconds = 20;  // fetching, loading, uploading, in predictions
inline constexpr int64_t kValidateSeconds = 60;         // a validation, in predictions
inline constexpr int64_t kAssumedRunSeconds = 14'400;   // a run whose length nobody can tell
inline constexpr double kSlowestClassRatio = 4;         // a class slower than the fastest by more is not used
inline constexpr int64_t kScheduleRefreshMs = 30'000;   // while jobs wait, so that expected starts stay fresh
// Whoever asks why a job waits is told of the last pass, which costs the dispatcher time by the length of the queue:
// below the first nobody counts it, above it takes at most one part in so many, and who asks between is told the last.
inline constexpr int64_t kFreeTellingMs = 1;
inline constexpr int64_t kTellingRest = 20;
inline constexpr int kMaxForecastsWaiting = 16;  // each is a telling of its own; more are refused
inline constexpr int kMaxExplainsWaiting = 64;   // for the next telling, because the last did not know their job
// And so long at most: clients give up on a call after 30 s, and an estimate is worth something without its forecast.
inline constexpr int64_t kMaxForecastWaitMs = 2'000;
inline constexpr int64_t kMaxTellingWaitMs = 200;  // a dispatcher that is busy for longer: the last that was told
inline constexpr int kMaxQuotas = 10'000;
// A device that was so often at fault (TrainerExit.device_at_fault) within the window rests: it is given to nobody. Of
// one job fewer count, whose own doing they may be. Forgotten once an attempt on the device succeeds, when its worker
// is undrained, and by a restart of the scheduler.
inline constexpr int kDeviceFaultsToRest = 3;
inline constexpr int kDeviceFaultsOfAJob = 2;
static_assert(kDeviceFaultsOfAJob < kDeviceFaultsToRest);
inline constexpr int64_t kDeviceFaultWindowMs = 3'600'000;
inline constexpr int64_t kDeviceRestMs = 3'600'000;
inline constexpr int kMaxBlockersNamed = 4;  // ends of attempts that an explanation names
inline constexpr int kMaxExplainedWorkers = 32;

// State folder
inline constexpr int64_t kMinFreeDiskBytes = 256 << 20;  // uploads and logs leave at least this
inline constexpr int64_t kClientDiskReserve = 20;  // and clients' uploads one part in so many of the disk beside it,
inline constexpr int64_t kMaxClientDiskReserveBytes = int64_t{64} << 30;  // at most this
inline constexpr int64_t kMaxStoredLogBytes = 64 << 20;                   // an attempt
inline constexpr int kMaxStoreReaders = 8;
inline constexpr int64_t kStoreBusyMs = 10'000;
inline constexpr int kMaxEventsRead = 10'000;
inline constexpr int kMaxCheckProblems = 100;           // listed; all are counted
inline constexpr int64_t kBackupEpochStep = 1'000'000;  // a backup's epochs are above all that its original gives out
inline constexpr int kBackupAttemptStep = 100;          // and so are its attempts' numbers
inline constexpr int kMaxIdsPerBurst = 32 * 32;         // that begin alike; two base32 characters count them
inline constexpr int64_t kMaxProcLocksBytes = 4 << 20;  // of /proc/locks, which names who holds a folder

// Attempts
inline constexpr int64_t kMaxTrainerEventBytes = 1 << 20;
inline constexpr int64_t kMaxStderrLogBytes = 16 << 20;
inline constexpr int64_t kLogUploadBytes = 256 << 10;  // of it, in one call
inline constexpr int64_t kFailureLogTailBytes = 4096;
inline constexpr int64_t kTrainerKillGraceMs = 30'000;
inline constexpr int64_t kLogEndWaitMs = 10'000;  // that an attempt's end waits for a log which is refused
inline constexpr int kMaxNonFiniteStepsInARow = 10;
inline constexpr int64_t kMaxAttemptSpecBytes = 64 << 20;
inline constexpr int64_t kMaxTrainerMessageBytes = 4096;
inline constexpr int64_t kMaxDataErrorBytes = 1024;
inline constexpr int kMaxEventsPerRead = 1000;
inline constexpr int kMaxProgressPerSync = 1000;
inline constexpr int kMaxWarningsPerSync = 100;
inline constexpr int kMaxFileNameBytes = 128;
inline constexpr int kMaxFetchThreads = 4;                           // of a worker: datasets and checkpoints down
inline constexpr int kMaxUploadThreads = 4;                          // and checkpoints and adapters up
inline constexpr int64_t kMaxBaseCacheBytes = int64_t{64} << 30;     // bases ready to copy, on a worker's disk
inline constexpr int64_t kMinBaseCacheFreeBytes = int64_t{4} << 30;  // a cached base leaves at least this
inline constexpr int64_t kMinSyncIntervalMs = 20;
inline constexpr int64_t kMinBackoffMs = 100;
inline constexpr int64_t kMaxBackoffMs = 10'000;
inline constexpr int64_t kSyncAnswerSlackMs = 10'000;  // beyond the hold time; then the connection is taken for dead
// Of a lease an agent asks so many times at least, however long nobody answers: it finds the scheduler again before the
// lease is over, or soon after.
inline constexpr int64_t kAsksPerLease = 4;
inline constexpr int64_t kModelLookMs = 10'000;  // between two looks at the model folders
// So many sessions in a row that end so soon after they were opened: another agent has this worker's id. (A scheduler
// that restarts ends one.)
inline constexpr int64_t kSessionTakenMs = 10'000;
inline constexpr int kMaxSessionsTaken = 3;

// Kernels
inline constexpr int kMaxGemmCandidates = 8;  // of the library's heuristics, timed at start-up
inline constexpr int kGemmTimingRounds = 4;   // of each; the first loads the kernel
inline constexpr int kMaxStackedLinears = 4;  // q, k, v; gate, up
inline constexpr int64_t kMaxHeadDim = 256;
// Parts of micro-batches (forward pass, loss, backward pass) that are kept captured, one for each number of rows that
// comes again: of 1,024 tokens, in units of 128 rows, there are 27 with the adapter's.
inline constexpr int64_t kMaxCudaGraphs = 64;
// One gives its place to another when so many parts came since it was used: a hundred micro-batches and more.
inline constexpr int64_t kCudaGraphStaleUses = 500;
// Of all of them together: what the driver keeps of a captured kernel is device memory outside the arenas, about
// 3 KiB each (model/cuda_plan.h).
inline constexpr int64_t kMaxCudaGraphNodes = 7'000;
inline constexpr int64_t kMaxSdpaBatch = 1 << 20;   // sequences or documents a call
inline constexpr int64_t kMaxProductRows = 65'536;  // of a product over a whole sequence: its matrices stay below 2^31

// Files from outside
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr int64_t kMaxGgufTensors = 100'000;
inline constexpr int64_t kMaxGgufKeyValues = 100'000;
inline constexpr int64_t kMaxGgufStringBytes = 64 << 20;
inline constexpr int64_t kMaxGgufArrayElements = 16 << 20;
inline constexpr int64_t kMaxJsonFileBytes = 256 << 20;
inline constexpr int kMaxJsonDepth = 64;
inline constexpr int64_t kMaxDatasetLineBytes = 8 << 20;
inline constexpr int64_t kMaxDatasetErrorsReported = 100;
inline constexpr int kMaxMessagesPerExample = 1000;
inline constexpr int kMaxVocabSize = 1 << 22;
inline constexpr int kMaxLayers = 1024;
inline constexpr int kMaxTensorRank = 64;
inline constexpr int64_t kMaxSafetensorsTensors = 1 << 18;
inline constexpr int64_t kMaxGgufKeyBytes = 65'535;
inline constexpr int64_t kMaxDatasetLineJsonValues = 1'000'000;
inline constexpr int64_t kMaxTokenizerJsonValues = 16'000'000;
inline constexpr int64_t kMaxAddedTokens = 65'536;
inline constexpr int64_t kMaxAddedTokenBytes = 1024;

// Files to outside
inline constexpr int64_t kExportShardBytes = int64_t{2} << 30;  // of an exported base; one is held in memory

// Kernels
inline constexpr int64_t kMostCudaContextBytes = 1 << 30;  // of a device: what a process takes beside its arena
inline constexpr int64_t kCudaPartialSumsBytes = 1 << 20;  // of an Exec: per-row and per-chunk results of one op
inline constexpr int64_t kMaxLossTileRows = 32'768;        // 32 bytes of them a row
inline constexpr int64_t kMaxLossTileCols = 24'576;        // in f32 what a block's shared memory holds anywhere

// Chat templates
inline constexpr int64_t kMaxTemplateBytes = 1 << 20;
inline constexpr int64_t kMaxTemplateSteps = 10'000'000;
inline constexpr int kMaxTemplateDepth = 200;
inline constexpr int64_t kMaxTemplateOutputBytes = 256 << 20;
inline constexpr int kMaxTemplateFrames = 1000;
// A conversation is rendered twice for each answer that trains; all of its renderings together:
inline constexpr int64_t kMaxLineRenderSteps = 40'000'000;
inline constexpr int64_t kMaxLineRenderBytes = 1 << 30;
inline constexpr int64_t kMaxTemplateRange = 100'000;

}  // namespace longhaul::limits
