/* A PKCS#11 module that passes every call on to another (SHIM_MODULE) and misbehaves as a file says (SHIM_CONTROL). Each of
 * its lines is one of these; FUNCTION is any of PKCS#11 2.40, such as C_Sign:
 *
 *   fail FUNCTION CODE [TIMES]         answers CODE (hexadecimal) and does nothing, but that C_Sign ends its operation, as it
 *                                      must; without TIMES always
 *   hang FUNCTION | crash FUNCTION     never answers, or ends the process
 *   slow FUNCTION MILLISECONDS         takes so much longer
 *   wait FUNCTION                      makes the file SHIM_CONTROL.waiting and goes on when the line is gone
 *
 *   final-try | locked | full | one-session
 *                                      C_GetTokenInfo says so (full: of every slot that its token is initialised); with
 *                                      one-session, C_OpenSession keeps to it
 *   login CODE | login crash           C_Login answers CODE for every error, or crashes after the token has answered
 *   silent CODE                        the same, and C_GetTokenInfo never shows what a wrong PIN has spent
 *   context CODE                       C_Login for one use of a key answers CODE
 *   keypad                             C_GetTokenInfo shows a keypad, at which a wrong PIN is typed
 *   flip                               C_Sign flips a bit of the signature
 *   fork                               C_Sign leaves a process behind, which has what this one has
 *   open PATH | signal PID             C_Sign tries to read and write a file, or to signal a process; what errno was then
 *                                      stands in SHIM_CONTROL.tried, one number for reading and one for writing
 *
 * Each C_Login adds a byte to the file SHIM_CONTROL.logins, each "fail" that was met one to SHIM_CONTROL.failed.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong_t;

/* PKCS#11 2.40, pkcs11f.h: every function, in the order of CK_FUNCTION_LIST. */
#define FUNCTIONS(X)                                                                                                     \
    X(Initialize) X(Finalize) X(GetInfo) X(GetFunctionList) X(GetSlotList) X(GetSlotInfo) X(GetTokenInfo)               \
    X(GetMechanismList) X(GetMechanismInfo) X(InitToken) X(InitPIN) X(SetPIN) X(OpenSession) X(CloseSession)            \
    X(CloseAllSessions) X(GetSessionInfo) X(GetOperationState) X(SetOperationState) X(Login) X(Logout) X(CreateObject)  \
    X(CopyObject) X(DestroyObject) X(GetObjectSize) X(GetAttributeValue) X(SetAttributeValue) X(FindObjectsInit)        \
    X(FindObjects) X(FindObjectsFinal) X(EncryptInit) X(Encrypt) X(EncryptUpdate) X(EncryptFinal) X(DecryptInit)        \
    X(Decrypt) X(DecryptUpdate) X(DecryptFinal) X(DigestInit) X(Digest) X(DigestUpdate) X(DigestKey) X(DigestFinal)     \
    X(SignInit) X(Sign) X(SignUpdate) X(SignFinal) X(SignRecoverInit) X(SignRecover) X(VerifyInit) X(Verify)            \
    X(VerifyUpdate) X(VerifyFinal) X(VerifyRecoverInit) X(VerifyRecover) X(DigestEncryptUpdate) X(DecryptDigestUpdate)  \
    X(SignEncryptUpdate) X(DecryptVerifyUpdate) X(GenerateKey) X(GenerateKeyPair) X(WrapKey) X(UnwrapKey) X(DeriveKey)  \
    X(SeedRandom) X(GenerateRandom) X(GetFunctionStatus) X(CancelFunction) X(WaitForSlotEvent)
#define NUMBER(name) name,
enum { FUNCTIONS(NUMBER) COUNT };
#define NAME(name) "C_" #name,
static const char *const names[COUNT] = {FUNCTIONS(NAME)};

/* No function has more arguments than eight, and each fits a register: passed on whole, they are right for all. */
#define ARGUMENTS ulong_t a, ulong_t b, ulong_t c, ulong_t d, ulong_t e, ulong_t f, ulong_t g, ulong_t h
typedef ulong_t (*function_t)(ARGUMENTS);
/* CK_FUNCTION_LIST: a version and the functions. */
struct list { unsigned char major, minor; function_t function[COUNT]; };
/* CK_TOKEN_INFO as far as it is changed. */
struct token_info { char names[32 + 32 + 16 + 16]; ulong_t flags, max_sessions; };

/* The module's own functions; the same with those below in their places; and what stands before them all. */
static struct list real, own, shim;
static int sessions;

/* Finds the line of the control file that begins with these words, and gives what follows them. */
static int told(const char *words, char *rest, size_t length) {
    char line[128];
    const char *path = getenv("SHIM_CONTROL");
    FILE *file = path ? fopen(path, "r") : NULL;
    int found = 0;
    while (file && !found && fgets(line, sizeof line, file)) {
        size_t end = strlen(words);
        found = strncmp(line, words, end) == 0 && strchr(" \n", line[end]);
        if (found && rest) snprintf(rest, length, "%s", line + end);
    }
    if (file) fclose(file);
    return found;
}

static int told_code(const char *word, ulong_t *code) {
    char rest[64];
    if (!told(word, rest, sizeof rest)) return 0;
    *code = strtoul(rest, NULL, 16);
    return 1;
}

static int told_of(const char *what, int function, char *rest, size_t length) {
    char words[64];
    snprintf(words, sizeof words, "%s %s", what, names[function]);
    return told(words, rest, length);
}

/* Adds a byte to a file beside the control file, and tells how many there are now. */
static long count(const char *suffix) {
    char path[4096];
    snprintf(path, sizeof path, "%s.%s", getenv("SHIM_CONTROL"), suffix);
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file < 0 || write(file, "x", 1) != 1) abort();
    long length = lseek(file, 0, SEEK_CUR);
    close(file);
    return length;
}

static int fails(int function, ulong_t *code) {
    char rest[64], *end;
    if (!told_of("fail", function, rest, sizeof rest)) return 0;
    *code = strtoul(rest, &end, 16);
    long times = strtol(end, NULL, 10);
    return count("failed") <= times || times == 0;
}

/* For real: a signal that is only sent is one that Rust's own handler returns from. */
static void crash(void) {
    *(volatile int *)NULL = 0;
}

static ulong_t pass(int function, ARGUMENTS) {
    ulong_t code;
    char milliseconds[64];
    while (told_of("hang", function, NULL, 0)) pause();
    while (told_of("wait", function, NULL, 0)) {
        char path[4096];
        snprintf(path, sizeof path, "%s.waiting", getenv("SHIM_CONTROL"));
        FILE *file = fopen(path, "w");
        if (file) fclose(file);
        usleep(2000);
    }
    if (told_of("crash", function, NULL, 0)) crash();
    if (told_of("slow", function, milliseconds, sizeof milliseconds)) usleep(strtoul(milliseconds, NULL, 10) * 1000);
    if (!fails(function, &code)) return own.function[function](a, b, c, d, e, f, g, h);
    if (function == Sign) own.function[function](a, b, c, d, e, f, g, h);
    return code;
}

#define PASS(name) static ulong_t pass_##name(ARGUMENTS) { return pass(name, a, b, c, d, e, f, g, h); }
FUNCTIONS(PASS)
#define PASSING(name) pass_##name,
static const function_t passing[COUNT] = {FUNCTIONS(PASSING)};

static ulong_t get_token_info(ARGUMENTS) {
    struct token_info *info = (struct token_info *)b;
    ulong_t rv = real.function[GetTokenInfo](a, b, c, d, e, f, g, h);
    if (told("final-try", NULL, 0)) info->flags |= 0x20000;
    if (told("locked", NULL, 0)) info->flags |= 0x40000;
    if (told("keypad", NULL, 0)) info->flags |= 0x100;
    if (told("full", NULL, 0)) info->flags |= 0x400;
    if (told("one-session", NULL, 0)) info->max_sessions = 1;
    if (told("silent", NULL, 0)) {
        info->flags &= ~0x70000UL;
        memset(info->names + 32, 'x', 32);
    }
    return rv;
}

static ulong_t open_session(ARGUMENTS) {
    if (told("one-session", NULL, 0) && sessions > 0) return 0xb1; /* CKR_SESSION_COUNT */
    sessions++;
    return real.function[OpenSession](a, b, c, d, e, f, g, h);
}

static ulong_t close_session(ARGUMENTS) {
    sessions--;
    return real.function[CloseSession](a, b, c, d, e, f, g, h);
}

static ulong_t login(ARGUMENTS) {
    ulong_t code;
    if (b == 2 && told_code("context", &code)) { /* CKU_CONTEXT_SPECIFIC */
        usleep(50000);
        return code;
    }
    if (!c && told("keypad", NULL, 0)) return 0xa0; /* CKR_PIN_INCORRECT */
    ulong_t rv = real.function[Login](a, b, c, d, e, f, g, h);
    if (told("login crash", NULL, 0)) crash();
    if (rv != 0 && (told_code("login", &code) || told_code("silent", &code))) return code;
    return rv;
}

static ulong_t counted_login(ARGUMENTS) {
    count("logins");
    return pass_Login(a, b, c, d, e, f, g, h);
}

static void tried(int reading, int writing) {
    char path[4096];
    snprintf(path, sizeof path, "%s.tried.new", getenv("SHIM_CONTROL"));
    FILE *file = fopen(path, "w");
    if (!file) abort();
    fprintf(file, "%d %d", reading, writing);
    fclose(file);
    char final[4096];
    snprintf(final, sizeof final, "%s.tried", getenv("SHIM_CONTROL"));
    rename(path, final);
}

static int opened(const char *path, int how) {
    int file = open(path, how);
    if (file < 0) return errno;
    close(file);
    return 0;
}

static void misbehave(void) {
    char rest[128];
    if (told("fork", NULL, 0) && fork() == 0) {
        setsid();
        for (;;) pause();
    }
    if (told("open", rest, sizeof rest)) {
        rest[strcspn(rest, "\n")] = 0;
        tried(opened(rest + 1, O_RDONLY), opened(rest + 1, O_WRONLY));
    }
    if (told("signal", rest, sizeof rest)) {
        int error = kill((pid_t)strtol(rest, NULL, 10), 0) ? errno : 0;
        tried(error, error);
    }
}

static ulong_t sign(ARGUMENTS) {
    misbehave();
    ulong_t rv = real.function[Sign](a, b, c, d, e, f, g, h);
    if (rv == 0 && d && told("flip", NULL, 0)) ((char *)d)[7] ^= 1;
    return rv;
}

ulong_t C_GetFunctionList(struct list **list) {
    ulong_t code;
    if (fails(GetFunctionList, &code)) return code;
    if (!real.major) {
        void *module = dlopen(getenv("SHIM_MODULE"), RTLD_NOW);
        ulong_t (*get)(struct list **) = module ? dlsym(module, "C_GetFunctionList") : NULL;
        struct list *theirs;
        if (!get || get(&theirs) != 0) return 0x5; /* CKR_GENERAL_ERROR */
        real = own = shim = *theirs;
        own.function[GetTokenInfo] = get_token_info;
        own.function[OpenSession] = open_session;
        own.function[CloseSession] = close_session;
        own.function[Login] = login;
        own.function[Sign] = sign;
        memcpy(shim.function, passing, sizeof passing);
        shim.function[GetFunctionList] = (function_t)(void *)C_GetFunctionList;
        shim.function[Login] = counted_login;
    }
    *list = &shim;
    return 0;
}
