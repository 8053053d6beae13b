// When no answer came: whether Triton may have had the request decides what the client is told.

const NOBODY = 'No Triton can be reached; try again.';
const LATE = 'Triton did not answer in time.';
const LOST = 'The connection to Triton was lost; the request may have been computed.';

function http(r) {
    const status = wasSent(r) ? (wasLate(r) ? 504 : 502) : 503;
    r.variables.why = {502: LOST, 503: NOBODY, 504: LATE}[status];
    r.return(status);
}

// DEADLINE_EXCEEDED, or UNAVAILABLE.
function grpc(r) {
    const status = wasSent(r) && wasLate(r) ? 4 : 14;
    r.variables.why = wasSent(r) ? (wasLate(r) ? LATE : LOST) : NOBODY;
    r.internalRedirect(`/grpc-status/${status}`);
}

// Both variables list the addresses tried, as in "0, 437".
function wasSent(r) {
    return /[1-9]/.test(r.variables.upstream_bytes_sent || '');
}

function wasLate(r) {
    return /504$/.test(r.variables.upstream_status || '');
}

export default {http, grpc};
