/* Stands in for onnxruntime's own header, which its wheel does not bring: what classify.c uses of it, and nothing else.
 *
 * The C interface is a table of functions whose places never change (onnxruntime adds behind the last one). Here are
 * those of version 1, with the gaps counted. Where onnxruntime's header is installed, the Makefile takes that one. */

#pragma once
#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 1

typedef struct OrtEnv OrtEnv;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;

typedef enum { ORT_LOGGING_LEVEL_WARNING = 2 } OrtLoggingLevel;
typedef enum { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1 } ONNXTensorElementDataType;
typedef enum { OrtArenaAllocator = 1 } OrtAllocatorType;
typedef enum { OrtMemTypeDefault = 0 } OrtMemType;

typedef struct {
    void *places_0_to_1[2];
    const char *(*GetErrorMessage)(const OrtStatus *);
    OrtStatus *(*CreateEnv)(OrtLoggingLevel, const char *name, OrtEnv **);
    void *places_4_to_6[3];
    OrtStatus *(*CreateSession)(const OrtEnv *, const char *model, const OrtSessionOptions *, OrtSession **);
    void *place_8;
    OrtStatus *(*Run)(OrtSession *, const OrtRunOptions *, const char *const *names, const OrtValue *const *inputs,
                      size_t, const char *const *output_names, size_t, OrtValue **outputs);
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);
    void *places_11_to_48[38];
    OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *data, size_t bytes, const int64_t *shape,
                                                 size_t axes, ONNXTensorElementDataType, OrtValue **);
    void *place_50;
    OrtStatus *(*GetTensorMutableData)(OrtValue *, void **data);
    void *places_52_to_68[17];
    OrtStatus *(*CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo **);
    void *places_70_to_91[22];
    void (*ReleaseEnv)(OrtEnv *);
    void *place_93;
    void (*ReleaseMemoryInfo)(OrtMemoryInfo *);
    void (*ReleaseSession)(OrtSession *);
    void (*ReleaseValue)(OrtValue *);
    void *places_97_to_99[3];
    void (*ReleaseSessionOptions)(OrtSessionOptions *);
} OrtApi;

typedef struct {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase *OrtGetApiBase(void);
