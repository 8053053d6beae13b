// Which Triton is asked; and when no answer came, what the client is told, which depends on whether
// Triton may have had the request.

import fs from 'fs';

const FRESH_MS = 5000;  // what peers.sh said longer ago counts no more: it hangs or has ended
const NOBODY = 'No Triton can be reached; try again.';
const LATE = 'Triton did not answer in time.';
const LOST = 'The connection to Triton was lost; the request may have been computed.';

// One of those that said a moment ago that they are ready (peers.sh): neither starting nor draining.
// Where none did, the name stays, and any of its addresses is asked.
function choose(r) {
    r.variables.triton = chosen(r);
}

function chosen(r) {
    const ready = readyNow(r.variables.ready_file);
    return ready.length ? ready[Math.floor(Math.random() * ready.length)] : r.variables.triton_name;
}

function readyNow(file) {
    try {
        if (Date.now() - fs.statSync(file).mtimeMs > FRESH_MS) {
            return [];
        }
        return fs.readFileSync(file, 'utf8').split('\n').filter((address) => address);
    } catch (missing) {
        return [];
    }
}

// An address that was chosen and cannot be reached: the name has others.
function mayAskOthers(r) {
    const chosen = r.variables.triton !== r.variables.triton_name;
    r.variables.triton = r.variables.triton_name;
    return chosen && !wasSent(r);
}

function http(r) {
    if (mayAskOthers(r)) {
        r.internalRedirect(r.variables.next);
        return;
    }
    const status = wasSent(r) ? (wasLate(r) ? 504 : 502) : 503;
    r.variables.why = {502: LOST, 503: NOBODY, 504: LATE}[status];
    r.return(status);
}

// DEADLINE_EXCEEDED, or UNAVAILABLE.
function grpc(r) {
    if (mayAskOthers(r)) {
        r.internalRedirect('@grpc');
        return;
    }
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

export default {choose, chosen, http, grpc};
