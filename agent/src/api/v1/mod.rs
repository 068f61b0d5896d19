//! Version 1 of the documents on the wire: camelCase JSON, one module for each subject.
//!
//! Promises: a field keeps its name, unit and meaning; fields are added, never changed. Absent
//! optional fields are left out. Readers ignore fields they do not know; the agent refuses unknown
//! fields in requests, because there a misspelt field would be a wish silently ignored.
//! Deliberately not the domain's types: the core converts at once.

mod alarm;
mod app;
mod event;
mod exec;
mod image;
mod journal;
mod problem;
mod process;
mod stable;
mod status;
mod task;
mod time;
mod trail;
mod transfer;

pub use alarm::Alarm;
pub use app::{AppDocument, AppList, AppSummary, ApplyOutcome, ApplyResult, WarmTargets};
pub use event::{AlarmChange, AppChange, Event, EventKey, InstanceChange, PullChange};
pub use exec::{ExecRequest, TerminalSize};
pub use image::{
    DamagedBlob, DamagedLayer, DamagedState, EvictRequest, EvictResult, EvictedImage,
    ImageDocument, ImageList, ImageReceipt, ImageRequest, ImageState, KeptImage, LayerReceipt,
    LayerStage, NotCompared, PullDocument, PullLayer, UnpackedResult, VerificationDocument,
    VerifyRequest, VerifyResult, WhyNotCompared,
};
pub use journal::{JournalDocument, JournalState};
pub use problem::{Finding, Problem, ProblemCode, ProblemRow};
pub use process::{
    InstanceMemory, Process, ProcessExit, ProcessList, ProcessState, SupervisedProcess,
    SupervisedState,
};
pub use stable::{
    AppImages, Drift, ListedImage, StableEvidence, StableImage, StableList, StableRequest,
};
pub use status::{
    ContainerdStatus, DiscoveryState, DiscoveryStatus, HostStatus, Instance, InstanceState,
    LeaseStatus, Pool, Reachability, Status,
};
pub use task::{
    Current, InstanceError, RollStep, SCALE_IMAGE_RULE, STEP_RULE, STRATEGY_RULE, ScaleImage,
    StartedFrom, Strategy, Task, TaskInstance, TaskList, TaskRequest, TaskState, TaskSummary, Verb,
};
pub use time::{InvalidTimestamp, Timestamp, millis};
pub use trail::{Step, StepOutcome, Trail};
pub use transfer::{ExportRequest, ExportResult, ImportRequest, ImportResult};
