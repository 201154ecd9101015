"""Tables of words: how radiologists say what is there, what is not there, and everything around it.

Placeholders: {side} right / left / bilateral, {Side} the same capitalised, {s} plural ending for
bilateral, {lobe}, {size} a measurement, {grade} and {Grade} the severity, {rib} an ordinal,
{device} a device.
"""

SMALL_LARGE = ("small", "moderate", "large")
MILD_SEVERE = ("mild", "moderate", "severe")
GRADES: dict[str, tuple[str, ...]] = {
    "pleural_effusion": SMALL_LARGE,
    "pericardial_effusion": SMALL_LARGE,
    "pneumothorax": ("small", "large"),
    "consolidation": ("focal", "moderate", "extensive"),
    "ground_glass": ("mild", "moderate", "extensive"),
}
RIBS = {"4": "fourth", "5": "fifth", "6": "sixth", "7": "seventh", "8": "eighth"}
DEVICES = {
    "pacemaker": ("left-sided pacemaker with its lead in the right ventricle",),
    "port": ("right-sided chest port with its catheter tip in the superior vena cava",),
    "sternal wires": ("median sternotomy wires",),
}

# In the findings section, one of several wordings per finding.
POSITIVE: dict[str, tuple[str, ...]] = {
    "pleural_effusion": (
        "{Grade} {side} pleural effusion{s}.",
        "There is a {grade} amount of {side} pleural fluid.",
        "{Side} pleural effusion{s} of {grade} size layering dependently.",
    ),
    "pneumothorax": (
        "{Grade} {side} pneumothorax.",
        "There is a {grade} pneumothorax on the {side} with partial collapse of the lung.",
    ),
    "consolidation": (
        "{Grade} consolidation in the {side} {lobe}.",
        "The {side} {lobe} shows {grade} airspace consolidation with air bronchograms.",
        "{Grade} consolidative change is seen in the {side} {lobe}, e.g. as in pneumonia.",
    ),
    "ground_glass": (
        "{Grade} {side} ground-glass opacities with peripheral distribution.",
        "There are {grade} {side} peripheral ground glass opacities.",
        "{Side} patchy ground-glass opacification, {grade} in extent.",
    ),
    "atelectasis": (
        "{Grade} {side} lower lobe atelectasis with elevation of the hemidiaphragm.",
        "Volume loss at the {side} base with {grade} atelectasis and a raised diaphragm.",
    ),
    "emphysema": (
        "{Grade} emphysema with bullae in the upper zones.",
        "Hyperinflated lungs with {grade} bullous emphysematous change and flattened diaphragms.",
        "{Grade} centrilobular and paraseptal emphysema.",
    ),
    "fibrosis": (
        "{Grade} subpleural reticulation with honeycombing at both bases, typical of fibrosis.",
        "{Grade} basal predominant pulmonary fibrosis.",
    ),
    "mosaic": (
        "Mosaic attenuation of both lungs.",
        "The lung parenchyma shows a mosaic attenuation pattern, suggesting small airways disease.",
    ),
    "septal_thickening": (
        "Diffuse interlobular septal thickening.",
        "Thickened interlobular septa in both lungs.",
    ),
    "peribronchial_thickening": (
        "Diffuse peribronchial thickening.",
        "Peribronchial cuffing with thickened central airway walls.",
    ),
    "bronchiectasis": (
        "{Side} lower lobe bronchiectasis.",
        "Dilated, thick-walled airways in the {side} lower lobe{s}, typical of bronchiectasis.",
    ),
    "nodule": (
        "Solid {side} {lobe} nodule measuring {size}.",
        "A {size} solid pulmonary nodule is present in the {side} {lobe}.",
        "In the {side} {lobe} there is a well-defined nodule of {size}.",
    ),
    "mass": (
        "Lobulated mass in the {side} {lobe} measuring {size}.",
        "A {size} soft tissue mass is seen in the {side} {lobe}, suspicious for malignancy.",
    ),
    "lymphadenopathy": (
        "Enlarged mediastinal lymph nodes, the largest measuring {size}.",
        "Mediastinal lymphadenopathy with paratracheal and subcarinal nodes up to {size}.",
    ),
    "cardiomegaly": (
        "{Grade} cardiomegaly.",
        "The heart is enlarged ({grade}).",
        "{Grade} enlargement of the cardiac silhouette.",
    ),
    "pericardial_effusion": (
        "{Grade} pericardial effusion.",
        "There is a {grade} amount of pericardial fluid.",
    ),
    "coronary_calcification": (
        "{Grade} coronary artery calcification.",
        "{Grade} calcified plaques in the coronary arteries.",
    ),
    "aortic_calcification": (
        "{Grade} calcification of the aortic wall.",
        "The aorta shows {grade} atherosclerotic wall calcification.",
    ),
    "hiatal_hernia": (
        "Hiatal hernia measuring {size}.",
        "Sliding hiatus hernia of {size} behind the heart with an air-fluid level.",
    ),
    "rib_fracture": (
        "Fracture of the lateral {side} {rib} rib with callus.",
        "Healing fracture of the {side} {rib} rib.",
    ),
    "device": ("{Device} noted.", "There is a {device}.", "Status post implantation: {device}."),
    "scoliosis": (
        "{Grade} thoracic scoliosis convex to the {side}.",
        "The thoracic spine shows a {grade} {side} convex scoliosis.",
    ),
    "steatosis": (
        "{Grade} hepatic steatosis in the partly imaged upper abdomen.",
        "Diffusely decreased attenuation of the liver, {grade}, in keeping with steatosis.",
    ),
}
PLURAL_DEVICES = ("sternal wires",)

# In the impression, shorter.
SUMMARY: dict[str, str] = {
    "pleural_effusion": "{Grade} {side} pleural effusion{s}",
    "pneumothorax": "{Grade} {side} pneumothorax",
    "consolidation": "{Side} {lobe} consolidation, likely pneumonia",
    "ground_glass": "{Side} ground-glass opacities, {grade}",
    "atelectasis": "{Side} lower lobe atelectasis",
    "emphysema": "{Grade} emphysema",
    "fibrosis": "{Grade} basal fibrosis",
    "mosaic": "Mosaic attenuation, probably due to air trapping",
    "septal_thickening": "Interlobular septal thickening",
    "peribronchial_thickening": "Peribronchial thickening, e.g. bronchitis",
    "bronchiectasis": "{Side} lower lobe bronchiectasis",
    "nodule": "{Side} {lobe} nodule, {size}",
    "mass": "{Side} {lobe} mass, {size}. Tissue sampling is advised",
    "lymphadenopathy": "Mediastinal lymphadenopathy",
    "cardiomegaly": "{Grade} cardiomegaly",
    "pericardial_effusion": "{Grade} pericardial effusion",
    "coronary_calcification": "{Grade} coronary calcification",
    "aortic_calcification": "{Grade} aortic calcification",
    "hiatal_hernia": "Hiatal hernia",
    "rib_fracture": "{Side} {rib} rib fracture",
    "device": "{Device}",
    "scoliosis": "{Grade} {side} convex scoliosis",
    "steatosis": "{Grade} hepatic steatosis",
}

# Said only if none of the kinds is present. The most telling ones first in each section.
NEGATIVE: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("pleural_effusion",), ("No pleural effusion.", "No pleural fluid on either side.")),
    (("pneumothorax",), ("No pneumothorax.",)),
    (("consolidation",), ("No consolidation.", "No focal airspace consolidation.")),
    (("ground_glass",), ("No ground-glass opacity.",)),
    (("consolidation", "ground_glass"), ("No infiltrate.",)),
    (("emphysema",), ("No emphysema.",)),
    (("nodule", "mass"), ("No suspicious nodule or mass.", "No pulmonary nodule or mass.")),
    (("lymphadenopathy",), ("No enlarged mediastinal lymph nodes.", "No lymphadenopathy.")),
    (("cardiomegaly",), ("The heart is normal in size.", "Normal heart size.")),
    (("pericardial_effusion",), ("No pericardial effusion.",)),
    (("coronary_calcification",), ("No coronary calcification.",)),
    (("hiatal_hernia",), ("No hiatal hernia.",)),
    (("rib_fracture",), ("No acute rib fracture.", "No displaced fracture.")),
    (("scoliosis",), ("Normal alignment of the thoracic spine.",)),
    (("steatosis",), ("The liver shows normal attenuation.",)),
    ((), ("The trachea and main bronchi are patent.", "The central airways are patent.")),
    ((), ("The adrenal glands are unremarkable.",)),
)
NORMAL_FINDINGS = ("The lungs are clear.", "Both lungs are clear and fully expanded.")
NORMAL_SUMMARY = ("No acute cardiopulmonary abnormality.", "Normal CT of the chest.")

HISTORY = (
    "{age}-year-old {person} with cough and fever",
    "{age} y.o. {person}, shortness of breath",
    "Chest pain in a {age}-year-old {person}",
    "Follow-up, known hypertension",
    "Weight loss and night sweats",
    "Preoperative assessment",
)
TECHNIQUE = (
    "Non-contrast helical CT of the chest, 120 kVp, {slices} slices",
    "Axial images of the thorax without intravenous contrast; multiplanar reformats",
    "Low-dose unenhanced CT of the thorax",
)
COMPARISON = ("None available", "CT of {date}", "Chest radiograph dated {date}", "{date}")
TITLES = ("CT CHEST WITHOUT CONTRAST", "CT THORAX", "Computed tomography of the chest")
HEADINGS: dict[str, tuple[str, ...]] = {
    "history": ("CLINICAL HISTORY:", "Indication:", "CLINICAL INFORMATION:", "History:"),
    "technique": ("TECHNIQUE:", "Technique:", "PROCEDURE:"),
    "comparison": ("COMPARISON:", "Comparison:"),
    "findings": ("FINDINGS:", "Findings:", "FINDINGS", "Findings"),
    "impression": ("IMPRESSION:", "Impression:", "CONCLUSION:", "Conclusion", "IMPRESSION"),
}
FAMILY_NAMES = (
    "Almeida", "Bauer", "Castellano", "Dubois", "Eriksson", "Fischer", "Garcia", "Haddad",
    "Ivanova", "Jansen", "Kowalski", "Lindqvist", "Müller", "Nakamura", "Okafor", "Petrov",
    "Quispe", "Rossi", "Schneider", "Tanaka", "Ueda", "Virtanen", "Weber", "Yilmaz", "Zhang",
)  # fmt: skip
GIVEN_NAMES = {
    "F": ("Anna", "Beatriz", "Chloé", "Daria", "Elena", "Fatima", "Greta", "Hana", "Ines", "Julia"),
    "M": ("Aaron", "Bruno", "Carlos", "David", "Emil", "Felix", "Georg", "Hugo", "Ivan", "José"),
}
HOSPITALS = ("St. Elsewhere Hospital", "Northfield General", "Klinikum am Park")

# CT-RATE's 18 labels in the official column order and the kinds that make each positive.
CT_RATE_LABELS: dict[str, tuple[str, ...]] = {
    "Medical material": ("device",),
    "Arterial wall calcification": ("aortic_calcification",),
    "Cardiomegaly": ("cardiomegaly",),
    "Pericardial effusion": ("pericardial_effusion",),
    "Coronary artery wall calcification": ("coronary_calcification",),
    "Hiatal hernia": ("hiatal_hernia",),
    "Lymphadenopathy": ("lymphadenopathy",),
    "Emphysema": ("emphysema",),
    "Atelectasis": ("atelectasis",),
    "Lung nodule": ("nodule", "mass"),
    "Lung opacity": ("ground_glass", "consolidation"),
    "Pulmonary fibrotic sequela": ("fibrosis",),
    "Pleural effusion": ("pleural_effusion",),
    "Mosaic attenuation pattern": ("mosaic",),
    "Peribronchial thickening": ("peribronchial_thickening",),
    "Consolidation": ("consolidation",),
    "Bronchiectasis": ("bronchiectasis",),
    "Interlobular septal thickening": ("septal_thickening",),
}
